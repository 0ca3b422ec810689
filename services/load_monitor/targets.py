"""Targets that were set while the mesh runs: of each task the newest counts, whoever set it.

An override is never taken out: one that gives the task back to the settings is an override too,
so that monitors that were apart agree by comparing stamps. It is forgotten long after it ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from services.common.checks import is_name
from services.common.errors import cut
from services.common.mesh_settings import MOST_TARGET

MAX_REASON_CHARACTERS = 200
MAX_CALLER_CHARACTERS = 128
MAX_OVERRIDES = 100
"""Most tasks that are remembered; the newest stay."""

_FORGET_NS = 30 * 24 * 3600 * 1_000_000_000
_LARGEST_NS = 2**62
_LONGEST_PROBLEM_BYTES = 200
_MOST_STORED_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TargetOverride:
    """What was said of one task.

    Args:
        task: Name of the task.
        target: Share of hard deadlines to be met, 0 for none; None: that of the settings.
        set_wall_ns: When, nanoseconds since 1970; the larger one counts.
        set_by: Who.
        reason: Why; empty if nobody said.
        expire_wall_ns: When it ends; 0: never.
    """

    task: str
    target: float | None
    set_wall_ns: int
    set_by: str = ""
    reason: str = ""
    expire_wall_ns: int = 0

    def is_in_force(self, now_ns: int) -> bool:
        """Returns whether it takes the place of the settings at a time."""
        return self.target is not None and not 0 < self.expire_wall_ns <= now_ns

    def is_over(self, now_ns: int) -> bool:
        """Returns whether it may be forgotten at a time."""
        end_ns = max(self.set_wall_ns, self.expire_wall_ns)
        return not self.is_in_force(now_ns) and end_ns + _FORGET_NS <= now_ns


Overrides = Mapping[str, TargetOverride]


def merged(
    one: Iterable[TargetOverride], other: Iterable[TargetOverride], now_ns: int
) -> Overrides:
    """Returns the newest override of each task, by name, without those long over."""
    found: dict[str, TargetOverride] = {}
    for each in (*one, *other):
        known = found.get(each.task)
        if known is None or _rank(each) > _rank(known):
            found[each.task] = each
    lasting = [each for each in found.values() if not each.is_over(now_ns)]
    newest = sorted(lasting, key=lambda each: -each.set_wall_ns)[:MAX_OVERRIDES]
    return {each.task: each for each in sorted(newest, key=lambda each: each.task)}


def in_force(overrides: Overrides, now_ns: int) -> tuple[TargetOverride, ...]:
    """Returns those that take the place of the settings at a time."""
    return tuple(each for each in overrides.values() if each.is_in_force(now_ns))


def encode(overrides: Overrides) -> bytes:
    """Returns the stored form, JSON."""
    return json.dumps([asdict(each) for each in overrides.values()]).encode()


def decode(payload: bytes) -> tuple[list[TargetOverride], list[str]]:
    """Returns what `encode` stored, and what is wrong with entries left out of it.

    Raises:
        ValueError: The bytes are something else.
    """
    if len(payload) > _MOST_STORED_BYTES:
        raise ValueError(f"stored targets have {len(payload)} bytes")
    try:
        entries = json.loads(payload)
    except RecursionError as error:
        raise ValueError("stored targets are nested too deep") from error
    if not isinstance(entries, list):
        raise ValueError("stored targets are no list")
    found: list[TargetOverride] = []
    problems: list[str] = []
    for entry in entries:
        try:
            found.append(_override(entry))
        except (LookupError, TypeError, ValueError) as error:
            problems.append(cut(f"{error!r}", _LONGEST_PROBLEM_BYTES))
    return found, problems


def _override(entry: Mapping[str, Any]) -> TargetOverride:
    """Returns a stored override, checked: what stands in the store may be anybody's."""
    task, target = entry["task"], entry["target"]
    if not is_name(task):
        raise ValueError(f"stored target of a task {task!r:.80}")
    if target is not None and not 0.0 <= float(target) <= MOST_TARGET:
        raise ValueError(f"stored target {target!r:.80} of {task}")
    stamps = [entry["set_wall_ns"], entry["expire_wall_ns"]]
    if any(type(stamp) is not int or not 0 <= stamp <= _LARGEST_NS for stamp in stamps):
        raise ValueError(f"stored target of {task} has stamps {stamps!r:.80}")
    return TargetOverride(
        task,
        None if target is None else float(target),
        stamps[0],
        cut(str(entry["set_by"]), MAX_CALLER_CHARACTERS),
        cut(str(entry["reason"]), 4 * MAX_REASON_CHARACTERS)[:MAX_REASON_CHARACTERS],
        stamps[1],
    )


def _rank(override: TargetOverride) -> tuple[int, float, str]:
    # Of two stamped alike all monitors take the same one.
    target = -1.0 if override.target is None else override.target
    return override.set_wall_ns, target, override.set_by
