"""What each door adds to the time to the first token, and what asking a router adds to Envoy.

Every door takes turns with the fake server behind it, which the same client asks directly at the
same rate: a low one, and half of what one core carries of the busiest process, or this machine of
all of them and the load together if that is less. Streams come token by token, some milliseconds
apart. Envoy is measured with whole answers too, in three ways: none, one that asks nobody, one that
asks a router. Where there is no Envoy its metrics are left out.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from services.bench.bench import Bench, Server, free_address
from services.bench.budgets import LOADS, PERCENTILES, first_token
from services.bench.doors import chatting, start_chain
from services.bench.hop import DEVICES, TOKENS
from services.bench.load import (
    PROMPT,
    SERVICE,
    Stream,
    cpu_by_server_s,
    first_tokens_s,
    generation,
    infer,
    percentile,
    posting,
    streaming,
)
from services.bench.peers import kserve_request
from services.bench.readings import CPU_OF, Reading
from services.bench.routers import TASK, start_router
from services.local import probes
from services.local.envoy import envoy_config, envoy_program
from services.local.errors import CommandError
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from trainer.evaluation import facts

LOW_RPS = 50.0
"""About a tenth of a core at every door."""
SECONDS = 3.0
"""How long each way is asked at each load, in a round of the full suite."""
OF_TRITON, OF_HTTP = f"{TOKENS}/1/0.005", f"{TOKENS}/0.005"
"""What the fake servers answer: tokens, five milliseconds apart."""
OWN = {"policy": "price"}
ENVOY_ADDED = {"envoy_added_p50": ("half", 0.50), "envoy_added_p99": ("half", 0.99)}
TIER_PATH = "/v2/models/tiercel/"
HEADERS = {"x-tiercel-task": TASK, "x-tiercel-deadline-ms": "5000"}
ASKED_ROUTER = b"x-tiercel-tier: "
"""Stands in the head of an answer that a router has sent somewhere."""
_WHOLE = "whole"
_OPTIONS = ("--concurrency", "1", "--disable-hot-restart", "-l", "warning")


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to an answer.

    Attributes:
        ask: Goes it; returns when the first token came, where that is measured.
        servers: Processes on it whose CPU time is told, by name; none on the direct way.
        cpu_R: What an answer costs each of them, seconds, by round.
        whole_R: The same of all processes together, this one too.
        took_R: How long answers took, seconds, in order of size, by load and round.
    """

    ask: Callable[[], Awaitable[Any]]
    servers: Mapping[str, Server] = dataclasses.field(default_factory=dict)
    cpu_R: list[Mapping[str, float]] = dataclasses.field(default_factory=list)
    whole_R: list[float] = dataclasses.field(default_factory=list)
    took_R: dict[str, list[list[float]]] = dataclasses.field(default_factory=dict)

    @property
    def cpu_s(self) -> dict[str, float]:
        """Median of the rounds, by name."""
        return {name: statistics.median(cpu[name] for cpu in self.cpu_R) for name in self.servers}


@dataclasses.dataclass(frozen=True)
class Trial:
    """Ways to the same answer that take turns.

    Attributes:
        ways: The direct one first, the one that is judged last.
        metrics: Load and percentile of each metric.
    """

    ways: Sequence[Way]
    metrics: Mapping[str, tuple[str, float]]

    @property
    def loads(self) -> list[str]:
        """Those of its metrics."""
        return list(dict.fromkeys(load for load, _ in self.metrics.values()))

    def rate_rps(self, load: str) -> float:
        """Requests a second at a load."""
        if load == "low":
            return LOW_RPS
        busiest_s = max(cpu_s for way in self.ways for cpu_s in way.cpu_s.values())
        whole_s = max(statistics.median(way.whole_R) for way in self.ways)
        return 0.5 / max(busiest_s, whole_s / facts.usable_cores())

    def readings(self) -> list[Reading]:
        """Returns its metrics."""
        parts = {
            f"{CPU_OF}{name}": 1e6 * cpu_s for way in self.ways for name, cpu_s in way.cpu_s.items()
        }
        readings = []
        for metric, (load, share) in self.metrics.items():
            rounds = zip(*(way.took_R[load] for way in self.ways), strict=True)
            pairs = [added_us(took, share) for took in rounds]
            added, reference = zip(*pairs, strict=True)
            rate = {"requests/s": self.rate_rps(load)}
            readings.append(Reading(metric, added, reference, rate | parts))
        return readings


def added_us(took: Sequence[Sequence[float]], share: float) -> tuple[float, float]:
    """Returns what the last way adds to the one before it, and what it stands beside.

    That is the direct way's own time; where a way lies between, what that one adds.

    Args:
        took: Times of each way, in order of size, seconds.
        share: Percentile.
    """
    direct, *others = (1e6 * percentile(times, share) for times in took)
    if len(others) == 1:
        return others[0] - direct, direct
    return others[1] - others[0], others[0] - direct


async def measure(bench: Bench) -> list[Reading]:
    """Measures what is wanted of the first tokens at doors and of `ENVOY_ADDED`."""
    bench.say(0.0, "starting servers")
    trials = await _trials(bench)
    steps = bench.rounds + 1 + 3 * bench.rounds
    whole = Server("", "", os.getpid())
    for number in range(bench.rounds + 1):
        bench.say(number / steps, f"CPU time, round {number} of {bench.rounds}")
        # The first round warms up and is not kept.
        count = math.ceil(bench.part(300 if number else 150))
        for way in (way for trial in trials for way in trial.ways):
            cpu_s = await cpu_by_server_s(way.ask, {**way.servers, _WHOLE: whole}, count)
            if number:
                way.whole_R.append(cpu_s.pop(_WHOLE))
                way.cpu_R.append(cpu_s)
    for number in range(bench.rounds):
        share = (bench.rounds + 1 + 3 * number) / steps
        bench.say(share, f"latency, round {number + 1} of {bench.rounds}")
        for trial in trials:
            for load in trial.loads:
                rate_rps, seconds = trial.rate_rps(load), bench.part(SECONDS)
                for way in trial.ways:
                    took_s = await first_tokens_s(way.ask, rate_rps, seconds)
                    way.took_R.setdefault(load, []).append(took_s)
    return [reading for trial in trials for reading in trial.readings()]


def first_tokens_of(door: str) -> dict[str, tuple[str, float]]:
    """Returns load and percentile of a door's metrics."""
    return {
        first_token(door, load, name): (load, share)
        for load in LOADS
        for name, share in PERCENTILES.items()
    }


async def _trials(bench: Bench) -> list[Trial]:
    """Starts what the wanted metrics need, and no more."""

    def wants(metrics: Iterable[str]) -> bool:
        return not bench.wanted.isdisjoint(metrics)

    generate, kserve = first_tokens_of("generate"), first_tokens_of("kserve")
    openai, envoy = first_tokens_of("openai"), first_tokens_of("envoy")
    trials: list[Trial] = []
    if wants([*generate, *kserve]):
        trials += await _grpc(bench, generate, kserve)
    if wants(openai):
        upstream = await bench.start("upstream", "services.bench.peers", "chat", OF_HTTP)
        chain = await start_chain(bench, upstream)
        asks = [chatting(bench, each, is_stream=True) for each in (upstream, chain["door"])]
        trials.append(Trial([Way(asks[0]), Way(asks[1], chain)], openai))
    if wants([*envoy, *ENVOY_ADDED]):
        try:
            program = envoy_program()
        except CommandError as error:
            missing = bench.wanted.intersection({*envoy, *ENVOY_ADDED})
            bench.missing.update(dict.fromkeys(missing, str(error)))
        else:
            trials += await _envoy(bench, program, envoy)
    return [trial for trial in trials if wants(trial.metrics)]


async def _grpc(
    bench: Bench,
    generate: Mapping[str, tuple[str, float]],
    kserve: Mapping[str, tuple[str, float]],
) -> list[Trial]:
    backend, traces = await asyncio.gather(
        bench.start("backend", "services.bench.peers", "backend", OF_TRITON),
        bench.start("traces", "services.bench.peers", "traces"),
    )
    addresses = [backend.address] * DEVICES
    router = await start_router(bench, "router", addresses, own=OWN, traces=traces.address)
    stream = pb2.GenerateStreamRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    doors = {
        "generate": streaming(bench, router, f"{SERVICE}/GenerateStream", stream),
        "kserve": infer(bench, router, kserve_request(PROMPT, TASK, TOKENS, stream=True)),
    }
    direct, servers = infer(bench, backend), {"router": router}
    return [
        Trial([Way(direct), Way(doors["generate"], servers)], generate),
        Trial([Way(direct), Way(doors["kserve"], servers)], kserve),
    ]


async def _envoy(
    bench: Bench, program: str, first_tokens: Mapping[str, tuple[str, float]]
) -> list[Trial]:
    upstream, traces = await asyncio.gather(
        bench.start("http-upstream", "services.bench.peers", "chat", OF_HTTP),
        bench.start("envoy-traces", "services.bench.peers", "traces"),
    )
    router = await start_router(
        bench,
        "envoy-router",
        [f"127.0.0.1:{1 + index}" for index in range(DEVICES)],
        own=OWN | {"envoy_listen": "127.0.0.1:0"},
        traces=traces.address,
        endpoint={"http_address": upstream.address},
    )
    picker = bench.address_of("envoy-router", "envoy")
    plain, asking = await asyncio.gather(
        *(
            _start_envoy(bench, program, upstream.address, picker, asks_router=each)
            for each in (False, True)
        )
    )

    stream, whole = "generate_stream", "generate"

    def ask(server: Server, name: str, *, marks: Sequence[bytes] = ()) -> Stream:
        question: dict[str, Any] = {
            "text_input": PROMPT,
            "stream": name == stream,
            "sampling_parameters": json.dumps({"max_tokens": TOKENS}),
        }
        body = json.dumps(question).encode()
        return posting(bench, server, TIER_PATH + name, body, headers=HEADERS, marks=marks)

    def asked(name: str) -> Way:
        servers = {"Envoy": asking, "its router": router}
        return Way(ask(asking, name, marks=[ASKED_ROUTER]), servers)

    between = Way(ask(plain, whole), {"Envoy without": plain})
    return [
        Trial([Way(ask(upstream, stream)), asked(stream)], first_tokens),
        Trial([Way(ask(upstream, whole)), between, asked(whole)], ENVOY_ADDED),
    ]


async def _start_envoy(
    bench: Bench, program: str, tier: str, picker: str, *, asks_router: bool
) -> Server:
    listen, admin = free_address(), free_address()
    text = envoy_config(listen=listen, admin=admin, pickers=[picker], tiers=[tier], model="small")
    text = patient(text) if asks_router else without_picker(text)
    name = "envoy" if asks_router else "plain-envoy"
    path = bench.folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    pid = await bench.start_program(
        name, [program, "-c", str(path), *_OPTIONS], lambda: probes.http_ok(admin, "/ready")
    )
    return Server(listen, "", pid)


def patient(text: str) -> str:
    """Returns a configuration of Envoy that waits for its router on a busy machine.

    It would send a request on without an answer, and count as fast where it is not.
    """
    before, found, after = text.partition("message_timeout: 0.1s")
    assert found, "deploy/envoy/envoy.yaml has another time limit of messages"
    return f"{before}message_timeout: 5s{after}"


def without_picker(text: str) -> str:
    """Returns a configuration of Envoy that asks nobody: only the last HTTP filter is left."""
    before, begin, filters = text.partition("http_filters:\n")
    others, last, after = filters.partition("- name: envoy.filters.http.router\n")
    assert begin, "deploy/envoy/envoy.yaml has no HTTP filters"
    assert last, "deploy/envoy/envoy.yaml has no router filter"
    return before + begin + others.rpartition("\n")[2] + last + after
