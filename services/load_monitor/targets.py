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

_DAY_NS = 24 * 3600 * 1_000_000_000
_FORGET_NS = 30 * _DAY_NS
# However wrong a clock is; a stamp far ahead would win for ever.
_FARTHEST_NS = 365 * _DAY_NS
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


def decode(payload: bytes, now_ns: int) -> tuple[list[TargetOverride], list[str]]:
    """Returns what `encode` stored, and what is wrong with entries left out of it.

    Args:
        payload: The bytes.
        now_ns: The present, wall clock, nanoseconds since 1970.

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
            found.append(_override(entry, now_ns))
        except (LookupError, TypeError, ValueError) as error:
            problems.append(cut(f"{error!r}", _LONGEST_PROBLEM_BYTES))
    return found, problems


def _override(entry: Mapping[str, Any], now_ns: int) -> TargetOverride:
    """Returns a stored override, checked: what stands in the store may be anybody's."""
    task, target = entry["task"], entry["target"]
    if not isinstance(task, str) or not is_name(task):
        raise ValueError(f"stored target of a task {task!r:.80}")
    is_number = type(target) in (int, float)
    if target is not None and not (is_number and 0 <= target <= MOST_TARGET):
        raise ValueError(f"stored target {target!r:.80} of {task}")
    set_ns, expire_ns = stamps = entry["set_wall_ns"], entry["expire_wall_ns"]
    if any(type(stamp) is not int for stamp in stamps):
        raise ValueError(f"stored target of {task} has stamps {stamps!r:.80}")
    if not (0 <= set_ns <= now_ns + _FARTHEST_NS and 0 <= expire_ns <= now_ns + 2 * _FARTHEST_NS):
        raise ValueError(f"stored target of {task} has stamps {stamps!r:.80}")
    return TargetOverride(
        task,
        None if target is None else float(target),
        set_ns,
        _text(entry["set_by"], MAX_CALLER_CHARACTERS),
        _text(entry["reason"], MAX_REASON_CHARACTERS),
        expire_ns,
    )


def _text(value: object, most: int) -> str:
    """Returns a text that a message can hold: JSON may have halves of characters."""
    return str(value)[:most].encode("utf-8", "replace").decode()


def _rank(override: TargetOverride) -> tuple[int, float, str]:
    # Of two stamped alike all monitors take the same one.
    target = -1.0 if override.target is None else override.target
    return override.set_wall_ns, target, override.set_by
