"""What processes hold: memory, descriptors, threads, tasks of their event loop."""

from __future__ import annotations

import asyncio
import re
import statistics
import urllib.request
from collections.abc import Mapping, Sequence

import psutil

HELD = ("memory_mb", "descriptors", "threads", "tasks")
ROOM: Mapping[str, tuple[float, float]] = {
    "memory_mb": (1.03, 2.0),
    "descriptors": (1.0, 8.0),
    "threads": (1.0, 2.0),
    "tasks": (1.0, 12.0),
}
"""How much more there may be in the last sixth than after warm-up: a factor, and an amount."""
FAR = 2.0
"""What holds more than so many times as much as it may has run away."""
IN_A_ROW = 3
"""Readings that must say so, one after the other."""
NOT_JUDGED = ("redis", "triton")
"""Redis fills its streams up to their bounds; what Triton holds is Triton's."""
_TASKS = re.compile(r"^tiercel_loop_tasks ([0-9.e+]+)$", re.MULTILINE)
_TIMEOUT_S = 5.0

Held = Mapping[str, float]


async def read(pids: Mapping[str, int], metrics: Mapping[str, str]) -> dict[str, Held]:
    """Returns what each process holds, with those below it.

    Args:
        pids: Process ids by name.
        metrics: Addresses of metrics pages by name; others have no tasks.
    """
    return await asyncio.to_thread(_read, pids, metrics)


def _read(pids: Mapping[str, int], metrics: Mapping[str, str]) -> dict[str, Held]:
    found: dict[str, Held] = {}
    for name, pid in pids.items():
        root = psutil.Process(pid)
        # The harness's own children are the mesh.
        below = [] if pid == psutil.Process().pid else root.children(recursive=True)
        held = {
            "memory_mb": 0.0,
            "descriptors": 0.0,
            "threads": 0.0,
        }
        for process in (root, *below):
            with process.oneshot():
                held["memory_mb"] += process.memory_info().rss / 1e6
                held["descriptors"] += process.num_fds()
                held["threads"] += process.num_threads()
        if address := metrics.get(name) or metrics.get(name.replace("-", "_")):
            url = f"http://{address}/metrics"
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as page:
                (tasks,) = _TASKS.findall(page.read().decode())
            held["tasks"] = float(tasks)
        found[name] = held
    return found


def grown(readings: Sequence[Mapping[str, Held]]) -> list[tuple[str, str, float, float, bool]]:
    """Compares the last sixth of a run with the second one, when everything is warm.

    Returns:
        Process, quantity, median in the second and in the last sixth, and whether it is flat.
    """
    if not readings:
        return []
    sixth = max(1, len(readings) // 6)
    warm = readings[sixth : 2 * sixth] or readings
    rows = []
    for name, held in readings[0].items():
        for quantity in held:
            early = statistics.median(each[name][quantity] for each in warm)
            late = statistics.median(each[name][quantity] for each in readings[-sixth:])
            factor, amount = ROOM[quantity]
            is_flat = name in NOT_JUDGED or late <= early * factor + amount
            rows.append((name, quantity, early, late, is_flat))
    return rows


def run_away(readings: Sequence[Mapping[str, Held]], planned_count: int) -> list[str]:
    """Returns what has grown so far beyond its room that there is nothing to wait for.

    Args:
        readings: Those so far.
        planned_count: How many there are to be; nothing is said before a third of them, and some.
    """
    sixth = max(1, planned_count // 6)
    if len(readings) < 2 * sixth + IN_A_ROW:
        return []
    found = []
    for name, held in readings[0].items():
        for quantity in held if name not in NOT_JUDGED else ():
            early = statistics.median(each[name][quantity] for each in readings[sixth : 2 * sixth])
            factor, amount = ROOM[quantity]
            last = [each[name][quantity] for each in readings[-IN_A_ROW:]]
            if min(last) > FAR * (early * factor + amount):
                found.append(f"{name} runs away: {quantity} from {early:g} to {last[-1]:g}")
    return found
