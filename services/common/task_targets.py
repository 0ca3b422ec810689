"""How the tasks' targets stand in a mesh, by a system state: what is in force, what is met."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiercel.load_monitor.v1 import system_state_pb2 as pb


@dataclass(frozen=True, slots=True)
class TaskTarget:
    """How the target of one task stands.

    Attributes:
        task: Its name.
        targets: Target in force to the number of routers that hold it; 0 is none.
        settings_target: That of the settings; None: no router told.
        on_time_count: Requests in time over about the last minute, all routers.
        missed_count: Requests late, refused or failed over the same time.
        given_up: Quality per request given up over the same time, against a largest tier that is
            always in time; None: nothing ended, or no router told.
        override: What was set while the mesh runs; None: nothing is in force.
    """

    task: str
    targets: Mapping[float, int]
    settings_target: float | None
    on_time_count: int
    missed_count: int
    given_up: float | None
    override: pb.TargetOverride | None

    @property
    def attained(self) -> float | None:
        """Share in time over about the last minute; None if nothing ended."""
        ended = self.on_time_count + self.missed_count
        return self.on_time_count / ended if ended else None

    @property
    def wanted(self) -> float | None:
        """The target that is to be in force; None: unknown."""
        return self.settings_target if self.override is None else self.override.target


def task_targets(state: pb.SystemState) -> list[TaskTarget]:
    """Returns how targets stand, in the order in which routers name the tasks."""
    overrides = {each.task: each for each in state.targets.overrides}
    told = collections.defaultdict(list)
    for router in state.routers:
        for task in router.task_attainments:
            told[task.task].append(task)
    names = [*told, *(name for name in overrides if name not in told)]
    return [
        TaskTarget(
            task=name,
            targets=collections.Counter(each.target for each in told[name]),
            settings_target=told[name][0].settings_target if told[name] else None,
            on_time_count=sum(each.on_time_count for each in told[name]),
            missed_count=sum(each.missed_count for each in told[name]),
            given_up=_given_up(told[name]),
            override=overrides.get(name),
        )
        for name in names
    ]


def _given_up(told: Sequence[pb.TaskAttainment]) -> float | None:
    known = [each for each in told if each.largest_quality > 0.0]
    counts = [each.on_time_count + each.missed_count for each in known]
    if not sum(counts):
        return None
    largest = sum(n * each.largest_quality for n, each in zip(counts, known, strict=True))
    return (largest - sum(each.delivered_reward_sum for each in known)) / sum(counts)


def target_text(target: float | None) -> str:
    """Returns a target in words."""
    if target is None:
        return "-"
    return f"{target:g}" if target > 0.0 else "none"


def in_force_text(targets: Mapping[float, int]) -> str:
    """Returns the target in force; where routers differ, of how many of them."""
    if len(targets) > 1:
        return ", ".join(f"{target_text(each)} at {n}" for each, n in sorted(targets.items()))
    return target_text(next(iter(targets), None))


def target_facts(found: TaskTarget) -> dict[str, Any]:
    """What JSON shows of a task's target."""
    override = found.override
    return {
        "task": found.task,
        "target": found.wanted,
        "settings_target": found.settings_target,
        "in_force": [{"target": t, "routers": n} for t, n in sorted(found.targets.items())],
        "attained": found.attained,
        "on_time_count": found.on_time_count,
        "missed_count": found.missed_count,
        "given_up": found.given_up,
        "set_by": override.set_by if override else "",
        "set_time": moment_text(override.set_time) if override else "",
        "expire_time": _expire_text(override) if override else "",
        "reason": override.reason if override else "",
    }


def _expire_text(override: pb.TargetOverride) -> str:
    return moment_text(override.expire_time) if override.HasField("expire_time") else ""


def moment_text(moment: Any) -> str:
    """Returns a timestamp to the second."""
    return str(moment.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC"))
