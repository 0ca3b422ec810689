"""What a request costs on its way through the router, beside bare grpc.aio servers.

Every server is a process of its own and takes its turn in every round. The measure is the CPU time
of that process: one core carries its inverse, and other work on the machine hardly touches it.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from services.bench.bench import Bench, Server
from services.bench.load import (
    PROMPT,
    SERVICE,
    Ask,
    cpu_per_request_s,
    generation,
    infer,
    latencies_s,
    percentile,
    streaming,
    unary,
)
from services.bench.peers import INFER_WHOLE, STREAM, UNARY, kserve_request
from services.bench.readings import Reading
from services.bench.routers import LEARNED, TASK, start_router
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

TOKENS, MANY_TOKENS = 8, 256
COALESCED = f"{MANY_TOKENS}/8"
"""A tier that sends eight tokens at a time, as one does that is faster than its stream."""
DEVICES = 4
PAIRS: Mapping[str, tuple[str, str]] = {
    "route": ("Route", "echo"),
    "generate": ("Generate", "proxy"),
    "generate_dqn": ("Generate dqn", "Generate"),
    "stream": ("GenerateStream", "relay"),
    "stream_coalesced": ("GenerateStream many", "relay many"),
    "kserve": ("ModelInfer", "proxy"),
    "kserve_stream": ("ModelStreamInfer", "relay"),
    "kserve_stream_coalesced": ("ModelStreamInfer many", "relay many"),
}
"""Metrics of CPU time: whose, beside whose."""
ADDED = ("generate_added_p50", "generate_added_p99")


class Subject:
    """One server under one kind of load."""

    def __init__(self, server: Server, ask: Ask, units: int = 1) -> None:
        """Takes the server, how to ask it, and how many units (tokens) one answer brings."""
        self.server = server
        self.ask = ask
        self.units = units
        self.cpu_s_R: list[float] = []

    @property
    def rate_R(self) -> list[float]:
        """Units per CPU second, by round."""
        return [self.units / cpu_s for cpu_s in self.cpu_s_R]


async def measure(bench: Bench) -> list[Reading]:
    """Measures what is wanted of `PAIRS` and `ADDED`."""
    pairs = {name: pair for name, pair in PAIRS.items() if name in bench.wanted}
    names = list(dict.fromkeys(name for pair in pairs.values() for name in pair))
    adds = not bench.wanted.isdisjoint(ADDED)
    names += [name for name in ("backend", "proxy", "Generate") if adds and name not in names]
    bench.say(0.0, "starting servers")
    subjects = await make_subjects(bench, names)
    steps = len(subjects) * (bench.rounds + 1) + 3 * bench.rounds * adds
    done = 0
    for number in range(bench.rounds + 1):
        for name, subject in subjects.items():
            bench.say(done / steps, f"round {number} of {bench.rounds}: {name}")
            # The first round warms up and is not kept.
            tokens = TOKENS / max(TOKENS, subject.units)
            count = math.ceil(bench.part(700 if number else 300) * max(0.25, tokens))
            cpu_s = await cpu_per_request_s(subject.ask, subject.server, count)
            subject.cpu_s_R += [cpu_s] if number else []
            done += 1
    readings = [_reading(name, subjects, *pair) for name, pair in pairs.items()]
    if adds:
        share = done / steps
        readings += await _added(bench, subjects, lambda text: bench.say(share, text))
    return readings


def _reading(name: str, subjects: Mapping[str, Subject], own: str, beside: str) -> Reading:
    value, reference = subjects[own], subjects[beside]
    parts = {
        "CPU us per request": 1e6 * statistics.median(value.cpu_s_R),
        "CPU us per request of the reference": 1e6 * statistics.median(reference.cpu_s_R),
    }
    return Reading(name, value.rate_R, reference.rate_R, parts)


async def _added(
    bench: Bench, subjects: Mapping[str, Subject], say: Callable[[str], None]
) -> list[Reading]:
    """Measures how much later an answer comes through the proxy and the router than without."""
    asks = {
        "direct": subjects["backend"].ask,
        "proxy": subjects["proxy"].ask,
        "router": subjects["Generate"].ask,
    }
    rate_rps = 0.5 / statistics.median(subjects["Generate"].cpu_s_R)
    duration_s = bench.part(7.0)
    took: dict[str, list[list[float]]] = {name: [] for name in asks}
    for number in range(bench.rounds):
        for name, ask in asks.items():
            say(f"half load, round {number + 1} of {bench.rounds}: {name}")
            took[name].append(await latencies_s(ask, rate_rps, duration_s))
    readings = []
    for metric, share in zip(ADDED, (0.5, 0.99), strict=True):
        at = {
            name: [1e6 * percentile(round_s, share) for round_s in rounds]
            for name, rounds in took.items()
        }
        parts = {f"{name}, us": statistics.median(values) for name, values in at.items()}
        parts["requests/s"] = rate_rps
        added = {
            name: [a - b for a, b in zip(at[name], at["direct"], strict=True)]
            for name in ("router", "proxy")
        }
        readings.append(Reading(metric, added["router"], added["proxy"], parts))
    return readings


async def make_subjects(bench: Bench, names: Sequence[str]) -> dict[str, Subject]:
    """Starts the servers that the named subjects need, and makes the subjects."""
    servers: dict[str, asyncio.Task[Server]] = {}

    def need(name: str, start: Callable[[], Awaitable[Server]]) -> Awaitable[Server]:
        if name not in servers:
            servers[name] = asyncio.ensure_future(start())
        return servers[name]

    def peer(kind: str, argument: str = "") -> Awaitable[Server]:
        name = f"{kind} {argument}".replace("/", " by ")
        return need(name, lambda: bench.start(name, "services.bench.peers", kind, argument))

    async def relay(tokens: int) -> Server:
        return await peer("proxy", (await peer("backend", str(tokens))).address)

    async def router(tokens: str, learned: bool) -> Server:
        backend, traces = await peer("backend", tokens), await peer("traces")
        own = LEARNED if learned else {"policy": "price"}
        name = f"router {own['policy']} {tokens}".replace("/", " by ")
        return await need(
            name,
            lambda: start_router(
                bench, name, [backend.address] * DEVICES, own=own, traces=traces.address
            ),
        )

    spec, long_spec = generation(TASK, TOKENS), generation(TASK, MANY_TOKENS)
    route = pb2.RouteRequest(task=TASK, prompt_token_count=120).SerializeToString()
    generate = pb2.GenerateRequest(spec=spec).SerializeToString()
    stream = pb2.GenerateStreamRequest(spec=spec).SerializeToString()
    long = pb2.GenerateStreamRequest(spec=long_spec).SerializeToString()

    async def make(name: str) -> Subject:
        match name:
            case "backend":
                server = await peer("backend", str(TOKENS))
                return Subject(server, infer(bench, server))
            case "echo":
                # As large as what the router answers, which is more than it is asked.
                other = await router(str(TOKENS), learned=False)
                routed: Any = await unary(bench, other, f"{SERVICE}/Route", route)()
                server = await peer("echo", str(len(routed)))
                return Subject(server, unary(bench, server, UNARY, route))
            case "Route":
                server = await router(str(TOKENS), learned=False)
                return Subject(server, unary(bench, server, f"{SERVICE}/Route", route))
            case "proxy":
                server = await relay(TOKENS)
                return Subject(server, unary(bench, server, UNARY, generate))
            case "Generate" | "Generate dqn":
                server = await router(str(TOKENS), learned=name.endswith("dqn"))
                method = f"{SERVICE}/Generate"
                return Subject(server, unary(bench, server, method, generate))
            case "relay" | "relay many":
                tokens, payload = (TOKENS, stream) if name == "relay" else (MANY_TOKENS, long)
                server = await relay(tokens)
                return Subject(server, streaming(bench, server, STREAM, payload), tokens)
            case "ModelInfer":
                server = await router(str(TOKENS), learned=False)
                payload = kserve_request(PROMPT, TASK, TOKENS, stream=False)
                return Subject(server, unary(bench, server, INFER_WHOLE, payload))
            case _:
                few = not name.endswith("many")
                tokens = TOKENS if few else MANY_TOKENS
                server = await router(str(TOKENS) if few else COALESCED, learned=False)
                if name.startswith("Model"):
                    payload = kserve_request(PROMPT, TASK, tokens, stream=True)
                    return Subject(server, infer(bench, server, payload), tokens)
                payload, method = stream if few else long, f"{SERVICE}/GenerateStream"
                return Subject(server, streaming(bench, server, method, payload), tokens)

    made = await asyncio.gather(*(make(name) for name in names))
    return dict(zip(names, made, strict=True))
