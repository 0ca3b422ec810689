"""The mesh at 60 % load for long, while clients, endpoints and policies come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.manifest import Manifest
from services.local.paced_mesh import paced_options
from tests.soak.churn import Churn
from tests.soak.crowd import Crowd, Window
from tests.soak.readings import Held, read
from trainer.shipped import PROFILES, QUALITY, shipped

LOAD_SHARE = 0.6
WINDOWS = 60
CHANGES = 120
"""Changes of endpoints and policies in a run, at least `LEAST_S` apart."""
LEAST_S = 2.0
HARNESS = "clients"
"""The process of the clients, among the others."""
STEP_S, STEP = 4.0, 1.4
FIRST_RPS, MOST_RPS = 20.0, 300.0
HELD_SHARE = 0.98

Say = Callable[[str], None]


@dataclasses.dataclass
class Run:
    """What was measured.

    Attributes:
        seconds: Length.
        capacity_rps: Highest rate that was held at the start; 0 if it was not looked for.
        rate_rps: Rate of the run.
        window_s: Length of each window.
        windows: What became of the requests, window by window.
        held: What each process held at the end of each window.
        clients: Clients that came in all.
        doors: Requests by the door at which they were asked.
        endpoints: Endpoints that came and went.
        policies: Changes of policy.
        errors: Errors of requests that failed, by words.
        connections_left: Connections to endpoints that had left, long after they had.
        starts: How often each process was started.
    """

    seconds: float
    capacity_rps: float
    rate_rps: float
    window_s: float
    windows: list[Window] = dataclasses.field(default_factory=list)
    held: list[Mapping[str, Held]] = dataclasses.field(default_factory=list)
    clients: int = 0
    doors: dict[str, int] = dataclasses.field(default_factory=dict)
    endpoints: int = 0
    policies: int = 0
    connections_left: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    starts: dict[str, int] = dataclasses.field(default_factory=dict)


def mesh_options() -> MeshOptions:
    """Returns the mesh: two devices, two routers, an OpenAI-shaped door, a trainer that learns."""
    options = paced_options(
        "soak",
        shipped(PROFILES, "opt-a100.toml"),
        quality=shipped(QUALITY, "opt.toml"),
        device_count=2,
    )
    return dataclasses.replace(
        options,
        router_count=2,
        openai_door=True,
        fresh=True,
        # As many connections are replaced in minutes as in an hour by default, and what is
        # remembered of ended requests is full within the warm-up of a short run too.
        sections={
            "router_inference": {
                "max_connection_age_s": 10.0,
                "explanation_memory_bytes": 256 * 1024,
                "feedback_memory_count": 200,
            },
            "load_monitor": {"max_connection_age_s": 10.0},
            "trainer": {
                "max_connection_age_s": 10.0,
                "autostart_online": True,
                "replay_capacity": 5_000,
            },
        },
    )


async def soak(seconds: float, rate_rps: float, say: Say) -> Run:
    """Starts the mesh, soaks it, ends it.

    Args:
        seconds: How long.
        rate_rps: Requests per second; 0: 60 % of what the mesh is found to hold.
        say: Takes a line of progress.
    """
    async with EmbeddedMesh(mesh_options(), say=say) as mesh:
        await mesh.start_backends()
        await mesh.start_services()
        return await soak_mesh(mesh.manifest, seconds, rate_rps, say)


async def soak_mesh(
    manifest: Callable[[], Manifest],
    seconds: float,
    rate_rps: float,
    say: Say,
    *,
    window_count: int = WINDOWS,
    change_s: float | None = None,
) -> Run:
    """Soaks a mesh that runs, with a change of endpoints or policies every `change_s` seconds."""
    first = manifest()
    crowd = Crowd(
        first.routers, first.addresses.get("openai_door", ""), life_s=max(1.0, seconds / 60.0)
    )
    churn = Churn(
        first.routers,
        first.addresses["load_monitor"],
        first.addresses["trainer"],
        first.addresses["triton_grpc"],
    )
    changing: asyncio.Task[None] | None = None
    try:
        capacity_rps = 0.0
        if not rate_rps:
            capacity_rps = await _capacity_rps(crowd, say)
            rate_rps = LOAD_SHARE * capacity_rps
        run = Run(seconds, capacity_rps, rate_rps, seconds / window_count)
        changing = asyncio.create_task(churn.run(change_s or max(LEAST_S, seconds / CHANGES)))
        began_s = time.monotonic()
        while (past_s := time.monotonic() - began_s) < seconds:
            window = await crowd.ask(rate_rps, min(run.window_s, seconds - past_s))
            if changing.done():
                changing.result()
            run.windows.append(window)
            run.held.append(await read(_pids(manifest()), first.metrics))
            say(_told(run, time.monotonic() - began_s))
    finally:
        if changing is not None:
            changing.cancel()
            await asyncio.wait((changing,))
        await churn.close()
        await crowd.close()
    run.clients, run.errors = crowd.client_count, dict(crowd.errors)
    run.doors = dict(crowd.asked)
    run.connections_left = churn.connections_left
    run.endpoints, run.policies = churn.endpoint_count, churn.policy_count
    processes: Mapping[str, Mapping[str, Any]] = manifest().processes
    run.starts = {name: int(each["start_count"]) for name, each in processes.items()}
    return run


async def _capacity_rps(crowd: Crowd, say: Say) -> float:
    """Returns the highest rate at which nearly every request was in time."""
    held_rps, rate_rps = FIRST_RPS, FIRST_RPS
    await crowd.ask(rate_rps, STEP_S)
    while rate_rps <= MOST_RPS:
        window = await crowd.ask(rate_rps, STEP_S)
        judged = max(1, window.sent - window.left)
        say(f"{rate_rps:.0f} requests/s: {window.on_time / judged:.3f} in time")
        if window.on_time < HELD_SHARE * judged:
            break
        held_rps, rate_rps = rate_rps, rate_rps * STEP
    await crowd.ask(FIRST_RPS, STEP_S)
    return held_rps


def _pids(manifest: Manifest) -> dict[str, int]:
    pids = {name: int(each["pid"]) for name, each in manifest.processes.items()}
    return {**pids, HARNESS: os.getpid()}


def _told(run: Run, past_s: float) -> str:
    window, held = run.windows[-1], run.held[-1]
    memory = ", ".join(f"{name} {each['memory_mb']:.0f}" for name, each in held.items())
    return (
        f"{past_s:5.0f} of {run.seconds:.0f} s: {window.sent} requests, {window.on_time} in time,"
        f" {window.failed} failed, p99 {window.p99_ms:.0f} ms; MB: {memory}"
    )
