"""The mesh at 60 % load for long, while clients, endpoints and policies come and go."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from services.local.embedded import EmbeddedMesh, MeshOptions
from services.local.errors import CommandError
from services.local.manifest import Manifest
from services.local.paced_mesh import paced_options
from tests.soak.churn import Churn
from tests.soak.crowd import Crowd, Window
from tests.soak.readings import Held, read, run_away
from tests.soak.verdict import HELD_SHARE, growth, verdicts
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
_LOOKS, _LOOK_AGAIN_S = 3, 1.0
"""Tries to read what processes hold, of which one may just be starting again."""

Say = Callable[[str], None]


@dataclasses.dataclass
class Run:
    """What was measured.

    Attributes:
        seconds: Length that was asked for.
        capacity_rps: Highest rate that was held at the start; 0 if it was not looked for.
        rate_rps: Rate of the run.
        window_s: Length of each window.
        windows: What became of the requests, window by window.
        held: What each process held at the end of each window.
        ends_s: When each window ended, seconds from the beginning.
        clients: Clients that came in all.
        doors: Requests by the door at which they were asked.
        endpoints: Endpoints that came and went.
        policies: Changes of policy.
        errors: Errors of requests that failed, by words.
        connections_left: Connections to endpoints that had left, long after they had.
        starts: How often each process was started.
        past_s: How long it lasted.
        cut_short: Why it ended before its time; empty if it did not.
    """

    seconds: float
    capacity_rps: float
    rate_rps: float
    window_s: float
    windows: list[Window] = dataclasses.field(default_factory=list)
    held: list[Mapping[str, Held]] = dataclasses.field(default_factory=list)
    ends_s: list[float] = dataclasses.field(default_factory=list)
    clients: int = 0
    doors: dict[str, int] = dataclasses.field(default_factory=dict)
    endpoints: int = 0
    policies: int = 0
    connections_left: int = 0
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    starts: dict[str, int] = dataclasses.field(default_factory=dict)
    past_s: float = 0.0
    cut_short: str = ""


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

    Raises:
        CommandError: The mesh does not start, or holds not even the lowest rate.
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
    """Soaks a mesh that runs, with a change of endpoints or policies every `change_s` seconds.

    It ends before its time where nothing is gained by waiting: something runs away, a process no
    longer tells what it holds, or endpoints and policies can no longer be changed. What was found
    until then is returned all the same, and told where the run is cancelled.
    """
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
    run: Run | None = None
    beside: list[asyncio.Task[None]] = []
    try:
        capacity_rps = 0.0
        if not rate_rps:
            capacity_rps = await _capacity_rps(crowd, say)
            rate_rps = LOAD_SHARE * capacity_rps
        run = Run(seconds, capacity_rps, rate_rps, seconds / window_count)
        change_s = change_s or max(LEAST_S, seconds / CHANGES)
        beside += [
            asyncio.create_task(crowd.offer(rate_rps, seconds), name="the load"),
            asyncio.create_task(churn.run(change_s), name="changes"),
        ]
        run.cut_short = await _watch(run, manifest, crowd, beside, say)
    except asyncio.CancelledError:
        if run is not None and run.windows:
            say(f"until then not as it should be: {'; '.join(verdicts(run)) or 'nothing'}")
        raise
    finally:
        for task in beside:
            task.cancel()
        if beside:
            await asyncio.wait(beside)
        not_left = await churn.close()
        await crowd.close()
    if not_left and not run.cut_short:  # else that is the cause of both
        run.cut_short = f"endpoints do not leave: {not_left}"
    if run.windows:  # what was under way has ended by now
        run.windows[-1] = run.windows[-1].with_more(crowd.take())
    run.clients, run.errors = crowd.client_count, dict(crowd.errors)
    run.doors = dict(crowd.asked)
    run.connections_left = churn.connections_left
    run.endpoints, run.policies = churn.endpoint_count, churn.policy_count
    processes: Mapping[str, Mapping[str, Any]] = manifest().processes
    run.starts = {name: int(each["start_count"]) for name, each in processes.items()}
    return run


async def _watch(
    run: Run,
    manifest: Callable[[], Manifest],
    crowd: Crowd,
    beside: Sequence[asyncio.Task[None]],
    say: Say,
) -> str:
    """Looks at everything at the end of each window; returns why it stopped before the last one."""
    planned_count, number = round(run.seconds / run.window_s), 0
    began_s = time.monotonic()
    while number < planned_count:
        # A look that takes longer than a window makes the next window longer, not the load less.
        next_number = math.ceil((time.monotonic() - began_s) / run.window_s)
        number = min(max(number + 1, next_number), planned_count)
        left_s = began_s + number * run.window_s - time.monotonic()
        ended, _ = await asyncio.wait(
            beside, timeout=max(0.0, left_s), return_when=asyncio.FIRST_EXCEPTION
        )
        run.past_s = time.monotonic() - began_s
        for task in ended:
            if error := task.exception():
                return f"{task.get_name()}: {error!r:.200}"
        try:
            held = await _read(manifest)
        except (OSError, ValueError, psutil.Error) as error:
            return f"a process does not tell what it holds: {error!r:.200}"
        run.windows.append(crowd.take())
        run.held.append(held)
        run.ends_s.append(round(run.past_s, 3))
        say(_told(run, planned_count))
        if found := run_away(run.held, planned_count):
            return "; ".join(found)
    return ""


async def _read(manifest: Callable[[], Manifest]) -> Mapping[str, Held]:
    """Reads what each process holds; again if one has just gone, since it is started again.

    Raises:
        OSError, ValueError, psutil.Error: One never told.
    """
    for _ in range(_LOOKS - 1):
        try:
            return await _read_once(manifest())
        except (OSError, ValueError, psutil.Error):
            await asyncio.sleep(_LOOK_AGAIN_S)
    return await _read_once(manifest())


async def _read_once(now: Manifest) -> Mapping[str, Held]:
    pids = {name: int(each["pid"]) for name, each in now.processes.items()}
    return await read({**pids, HARNESS: os.getpid()}, now.metrics)


async def _capacity_rps(crowd: Crowd, say: Say) -> float:
    """Returns the highest rate at which nearly every request was in time.

    Raises:
        CommandError: Not even at the first one it was so.
    """
    held_rps, rate_rps = 0.0, FIRST_RPS
    await crowd.ask(rate_rps, STEP_S)
    while rate_rps <= MOST_RPS:
        window = await crowd.ask(rate_rps, STEP_S)
        judged = max(1, window.sent - window.left)
        say(f"{rate_rps:.0f} requests/s: {window.on_time / judged:.3f} in time")
        if window.on_time < HELD_SHARE * judged:
            break
        held_rps, rate_rps = rate_rps, rate_rps * STEP
    if not held_rps:
        raise CommandError(
            f"not even {FIRST_RPS:g} requests/s are held on this machine: give a rate by --rps"
        )
    await crowd.ask(FIRST_RPS, STEP_S)
    return held_rps


def _told(run: Run, planned_count: int) -> str:
    window, held = run.windows[-1], run.held[-1]
    memory = ", ".join(f"{name} {each['memory_mb']:.0f}" for name, each in held.items())
    # In the first half, what is warming up would pass for growth.
    more = growth(run) if len(run.held) > planned_count // 2 else []
    return (
        f"{run.past_s:5.0f} of {run.seconds:.0f} s: {window.sent} requests, {window.on_time} in"
        f" time, {window.failed} failed, p99 {window.p99_ms:.0f} ms; MB: {memory}"
    ) + (f"; grown: {'; '.join(more)}" if more else "")
