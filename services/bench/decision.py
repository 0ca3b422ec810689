"""What a decision costs, in this process: a router's own parts, without sockets.

Everything between a checked request and its chosen candidate is in it: the view of the fleet, the
load, the traffic, features, predictions, admission, policy and record. The ledger is loaded. CPU
time of the thread, one call at a time; worlds of all sizes take turns.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from router.dqn.network import q_values
from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from services.bench.bench import Bench
from services.bench.readings import Reading
from services.bench.routers import LEARNED, PROFILE, TASK, TIERS, write_settings
from services.common.clock import SystemClock
from services.common.settings import load_settings
from services.common.telemetry import Telemetry
from services.router_inference.app import build_app
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import Core
from services.router_inference.job import Ask, Job
from services.router_inference.settings import Settings
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from trainer.shipped import POLICIES, shipped

BARE = "bare"
WORLDS: Mapping[str, tuple[Mapping[str, Any], int, int]] = {
    "price_12": ({"policy": "price"}, 4, 2_000),
    "dqn_12": (LEARNED, 4, 2_000),
    "dqn_192": (LEARNED, 64, 400),
    "dqn_3072": (LEARNED, 1024, 40),
}
"""Settings of the router, devices, and decisions per round."""
METRICS: Mapping[str, tuple[str, float, str]] = {
    "decision_price_12": ("price_12", 0.5, BARE),
    "decision_dqn_12": ("dqn_12", 0.5, BARE),
    "decision_dqn_12_p99": ("dqn_12", 0.99, BARE),
    "decision_dqn_192": ("dqn_192", 0.5, "dqn_12"),
    "decision_dqn_3072": ("dqn_3072", 0.5, "dqn_12"),
}
"""World, quantile, and the world beside whose median it stands."""
GROWS = "decision_dqn_3072"
"""The metric that brings the times at other sizes along."""
GROWTH_DEVICES = (1, 4, 16, 64, 256, 1024)
GROWTH_CANDIDATES = 20_000
"""Candidates looked at per point: few decisions where each looks at many."""
DEADLINE_S = 3.0
MOST_IN_FLIGHT = 8
ADDRESS = "127.0.0.1:9"
"""Of every endpoint; nothing is ever sent to it."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """What is timed, and what it is called with, which is made outside of the time taken."""

    call: Callable[[Any], object]
    arguments: Iterator[Any]


async def measure(bench: Bench) -> list[Reading]:
    """Measures what is wanted of `METRICS`."""
    metrics = {name: row for name, row in METRICS.items() if name in bench.wanted}
    names = {name for world, _, beside in metrics.values() for name in (world, beside)}
    counts = {
        name: math.ceil(bench.part(count))
        for name, (_, _, count) in WORLDS.items()
        if name in names
    }
    calls = {}
    for index, name in enumerate(counts):
        bench.say(0.3 * index / len(counts), f"making {name}")
        own, device_count, _ = WORLDS[name]
        calls[name] = await _world(bench, own, device_count)
    if BARE in names:
        counts[BARE], calls[BARE] = math.ceil(bench.part(2_000)), bare_forward_pass()
    took_us: dict[str, list[list[float]]] = {name: [] for name in calls}
    for number in range(bench.rounds + 1):
        for name, call in calls.items():
            bench.say(0.3 + 0.6 * number / (bench.rounds + 1), f"round {number}: {name}")
            taken = _times_us(call, counts[name])
            took_us[name] += [taken] if number else []  # the first warms up and is not kept
            await asyncio.sleep(0)
    series = await _growth(bench) if GROWS in metrics else {}
    return [
        Reading(
            metric,
            [_at(times, share) for times in took_us[world]],
            [_at(times, 0.5) for times in took_us[beside]],
            {
                "decisions per round": float(counts[world]),
                f"the same percentile of {beside}, us": statistics.median(
                    _at(times, share) for times in took_us[beside]
                ),
            },
            series=series if metric == GROWS else {},
        )
        for metric, (world, share, beside) in metrics.items()
    ]


async def _growth(bench: Bench) -> dict[str, list[tuple[float, float]]]:
    """Returns the median decision time, us, over the number of candidates, by policy."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for own in ({"policy": "price"}, LEARNED):
        for device_count in GROWTH_DEVICES[: 2 if bench.suite.rounds == 1 else None]:
            candidates = device_count * len(TIERS)
            bench.say(0.9, f"{own['policy']} with {candidates:,} candidates")
            call = await _world(bench, own, device_count)
            count = max(20, math.ceil(bench.part(GROWTH_CANDIDATES)) // candidates)
            _times_us(call, count)  # warms up
            took_us = _times_us(call, count)
            lines.setdefault(own["policy"], []).append((candidates, _at(took_us, 0.5)))
            await asyncio.sleep(0)
    return lines


def bare_forward_pass() -> Calls:
    """Returns calls of the shipped network alone: 12 rows, plain numpy, nothing around it."""
    blob = shipped(POLICIES, f"{PROFILE}.safetensors").read_bytes()
    snapshot = load_snapshot(blob, SCHEMA, PROFILE)
    rng = np.random.default_rng(0)
    x_CF = rng.random((12, len(snapshot.feature_names))).astype(np.float32)
    open_C, base_C, out_C = np.ones(12, np.bool_), np.zeros(12), np.zeros(12)
    weights = snapshot.weights
    return Calls(lambda _: q_values(x_CF, open_C, base_C, *weights, out_C), itertools.repeat(None))


async def _world(bench: Bench, own: Mapping[str, Any], device_count: int) -> Calls:
    """Returns decisions of a loaded router, each for a request that has just come."""
    clients = ClientPool()
    bench.stack.push_async_callback(clients.close)
    config = bench.folder / f"{own['policy']}-{device_count}.toml"
    write_settings(config, [ADDRESS] * device_count, own, deadline_s=DEADLINE_S)
    settings = load_settings(Settings, path=config, environ={})
    app = await asyncio.to_thread(build_app, settings)  # may have to compile first
    place = Place(router_id="bench", epoch=app.clock.wall_ns(), siblings=NoSiblings())
    core = app.build_core(place, Telemetry(None, random.Random(1)), None, clients)
    rng = random.Random(device_count)
    ledger = core.view.load.ledger
    for device in range(device_count):
        for tier in TIERS:
            for number in range(rng.randint(0, MOST_IN_FLIGHT)):
                key = f"{device} {tier} {number}"
                ledger.dispatch(key, (tier, f"e{device}"), 110.0, 8.0)
    return Calls(core.leases._decider.decide, _jobs(core))


def _jobs(core: Core) -> Iterator[Job]:
    """Yields checked requests that have just come."""
    clock = SystemClock()
    rng = random.Random(1)
    while True:
        ask = Ask(task=TASK, prompt_tokens=rng.randint(40, 300), max_output_tokens=8)
        yield core.validator.job(ask, clock.monotonic_s(), clock.wall_ns())


def _times_us(calls: Calls, count: int) -> list[float]:
    """Returns the CPU time of each call, us, sorted."""
    took, call = [], calls.call
    for argument in itertools.islice(calls.arguments, count):
        start_ns = time.thread_time_ns()
        call(argument)
        took.append((time.thread_time_ns() - start_ns) / 1e3)
    return sorted(took)


def _at(times: list[float], share: float) -> float:
    return times[int(share * len(times))]
