"""Groups of like devices: what their candidates cost, and how much work they can do when.

Shape letters: G groups of like devices, M cells of time.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.simulate import FleetEvent, SimulationConfig

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Option:
    """A kind of candidate: what it costs, what it is worth, where it runs.

    Attributes:
        group: index of the group of like devices it is on.
        step_s: cost of an iteration independent of its batch, seconds.
        sequence_s: cost per sequence and iteration, seconds.
        prompt_token_s: cost per prompt token, seconds.
        overhead_s: latency outside the device, seconds.
        max_batch: most sequences per iteration.
        room: most tokens of keys and values, infinite where there is no limit.
        prefix_room: most tokens of prefixes that are kept, 0 where none are.
        quality: quality on each task.
    """

    group: int
    step_s: float
    sequence_s: float
    prompt_token_s: float
    overhead_s: float
    max_batch: float
    room: float
    prefix_room: float
    quality: tuple[float, ...]


def options_of(config: SimulationConfig) -> tuple[list[Option], tuple[tuple[int, ...], ...]]:
    """Returns the kinds of candidate and the devices of each group of like devices.

    Devices are alike if their candidates cost and are worth the same and nothing happens to them,
    or the same at the same times. Candidates of devices that are never usable are left out.
    """
    fleet, arrays = config.fleet, config.fleet.arrays
    members: dict[tuple[object, ...], list[int]] = {}
    kinds: dict[tuple[object, ...], list[tuple[object, ...]]] = {}
    for d in range(len(fleet.devices)):
        events = sorted((e.time_s, e.kind, e.value) for e in config.events if e.device == d)
        comes_back = any(kind == "back" for _, kind, _ in events)
        rows = set()
        for c in np.flatnonzero(arrays.device_C == d):
            if arrays.availability_C[c] <= 0.0 and not comes_back:
                continue
            tier, endpoint = fleet.candidate(int(c))
            cost = config.profiles[endpoint.profile].tiers[tier].scaled(1.0 / endpoint.speed)
            times = (cost.step_s, cost.per_sequence_s, cost.per_prompt_token_s, cost.overhead_s)
            quality = tuple(arrays.quality_KC[:, c].tolist())
            room = np.inf if cost.max_kv_tokens is None else float(cost.max_kv_tokens)
            kept = float(cost.prefix_cache_tokens)
            rows.add((*times, float(cost.max_batch), room, kept, quality))
        key = (tuple(sorted(rows)), tuple(events))
        members.setdefault(key, []).append(d)
        kinds[key] = sorted(rows)
    options = [
        Option(group, *row)  # type: ignore[arg-type]
        for group, rows in enumerate(kinds.values())
        for row in rows
    ]
    return options, tuple(tuple(devices) for devices in members.values())


def _speeds(events: Sequence[FleetEvent], device: int) -> list[tuple[float, float, bool]]:
    """Returns (time from which on, speed, alive) of a device, the first from minus infinity."""
    rows = [(-np.inf, 1.0, True)]
    for event in sorted(events, key=lambda e: e.time_s):
        if event.device == device:
            _, speed, alive = rows[-1]
            speed = 1.0 / event.value if event.kind == "slow" else speed
            alive = event.kind == "back" or (alive and event.kind != "lost")
            rows.append((event.time_s, speed, alive))
    return rows


def top_speed(events: Sequence[FleetEvent], device: int) -> float:
    """Returns the highest speed a device ever has."""
    return max(speed for _, speed, _ in _speeds(events, device))


def capacity_GM(
    events: Sequence[FleetEvent],
    devices_G: Sequence[Sequence[int]],
    memory_s: float,
    edge_M1: Floats,
) -> Floats:
    """Returns the work each group can do in each cell of time, seconds at full speed [G, M].

    Args:
        events: what happens to devices.
        devices_G: devices of each group.
        memory_s: longest an iteration that serves anybody can last, seconds.
        edge_M1: edges of the cells, seconds, rising.
    """
    work_GM = np.zeros((len(devices_G), len(edge_M1) - 1))
    for group, devices in enumerate(devices_G):
        rows = _speeds(events, devices[0])
        starts = [row[0] for row in rows]
        # Between two of these times neither the speeds remembered nor the state change.
        points = np.unique([s for t in starts[1:] for s in (t, t + memory_s)])
        times = np.unique(np.concatenate([edge_M1, points]))
        times = times[(times >= edge_M1[0]) & (times <= edge_M1[-1])]
        for low, high in itertools.pairwise(times):
            middle = (low + high) / 2.0
            now = int(np.searchsorted(starts, middle, side="right")) - 1
            first = max(0, int(np.searchsorted(starts, middle - memory_s, side="right")) - 1)
            if rows[now][2]:
                cell = int(np.searchsorted(edge_M1, middle, side="right")) - 1
                speed = max(row[1] for row in rows[first : now + 1])
                work_GM[group, cell] += (high - low) * speed * len(devices)
    return work_GM
