"""Two workers behind one port beside one: what a request costs them, and how many they carry.

The workers share two cores. The load generator and the tiers run on the machine's other cores where
it has four or more; with fewer they run on the same two, and the rates say little: two workers
cannot get more than what the rest leaves of two cores.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time

from services.bench.bench import Bench, Server
from services.bench.load import IN_FLIGHT, SERVICE, Ask, cpu_per_request_s, generation, unary
from services.bench.readings import Reading
from services.bench.routers import TASK, start_router
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

COUNTS = (1, 2)
CONNECTIONS = 16
"""Of the load generator to each router, used in turn: the kernel shares them out."""
REQUESTS = 1_500
BACKENDS = 2
TOKENS = 8
WORKER_CORES = 2
_ENOUGH_CORES = 4


async def measure(bench: Bench) -> list[Reading]:
    """Measures requests per CPU second and per second of both, in turns."""
    cores = sorted(os.sched_getaffinity(0))
    has_enough = len(cores) >= _ENOUGH_CORES
    own, rest = (cores[:WORKER_CORES], cores[WORKER_CORES:]) if has_enough else (cores, cores)
    os.sched_setaffinity(0, rest)
    bench.stack.callback(os.sched_setaffinity, 0, cores)
    bench.say(0.0, "starting servers")
    backends = [
        await bench.start(f"backend{n}", "services.bench.peers", "backend", str(TOKENS), cores=rest)
        for n in range(BACKENDS)
    ]
    traces = await bench.start("traces", "services.bench.peers", "traces", cores=rest)
    subjects: dict[int, tuple[Server, Ask]] = {}
    for count in COUNTS:
        router = await start_router(
            bench,
            f"router {count}",
            [backend.address for backend in backends] * 2,
            own={"policy": "price", "workers": count},
            traces=traces.address,
            cores=own,
        )
        subjects[count] = router, _asks_in_turn(bench, router)
    per_cpu_s: dict[int, list[float]] = {count: [] for count in COUNTS}
    per_s: dict[int, list[float]] = {count: [] for count in COUNTS}
    for number in range(bench.rounds + 1):
        for count, (router, ask) in subjects.items():
            bench.say(number / (bench.rounds + 1), f"round {number} of {bench.rounds}: {count}")
            requests = max(CONNECTIONS, math.ceil(bench.part(REQUESTS)))
            start_s = time.perf_counter()
            cpu_s = await cpu_per_request_s(ask, router, requests, IN_FLIGHT * count)
            if number:
                per_cpu_s[count].append(1.0 / cpu_s)
                per_s[count].append(requests / (time.perf_counter() - start_s))
    one, two = (statistics.median(per_s[count]) for count in COUNTS)
    parts = {
        "requests/s, two workers": two,
        "requests/s, one worker": one,
        "throughput beside one worker": two / one,
        "cores of the machine": float(len(cores)),
    }
    where = (
        "on other cores"
        if has_enough
        else f"on the same {len(cores)} cores, so the rates say little"
    )
    note = f"{IN_FLIGHT} requests under way for each worker; load and tiers {where}"
    return [Reading("workers_2", per_cpu_s[2], per_cpu_s[1], parts, note)]


def _asks_in_turn(bench: Bench, router: Server) -> Ask:
    """Returns a function that makes one call, by each of the connections in turn."""
    payload = pb2.GenerateRequest(spec=generation(TASK, TOKENS)).SerializeToString()
    method = f"{SERVICE}/Generate"
    asks = itertools.cycle([unary(bench, router, method, payload) for _ in range(CONNECTIONS)])

    async def ask() -> object:
        return await next(asks)()

    return ask
