"""The minute under way: by how much the routers' counts have grown since it began."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from numpy.typing import NDArray

from services.common.checks import MAX_COUNT
from services.common.state.minute_store import MINUTE_S
from services.common.times import duration_of, from_ns, seconds_of, timestamp_of
from services.load_monitor.convert import TASK_COUNTS
from services.load_monitor.model import Picture, RouterReport
from tiercel.load_monitor.v1 import minutes_pb2 as pb
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

_SUMS = ("delivered_reward_sum", "smooth_answer_sum")
_NUMBERS = (*TASK_COUNTS, *_SUMS)
_LONGEST_GAP_S = 5.0
"""A time without a look at the mesh that is longer counts as not watched."""
_MOST_ROUTERS = 10_000
"""Router processes whose last counts are remembered, those gone among them."""

_Process = tuple[str, int]


class _Task:
    """One task's growth within the minute."""

    def __init__(self) -> None:
        self.numbers_E: NDArray[np.float64] = np.zeros(len(_NUMBERS))
        self.answers: Counter[str] = Counter()


_Told = dict[str, tuple[NDArray[np.float64], dict[str, int]]]
"""Numbers of a process since its start, and its answers by tier, by task."""


class Tally:
    """Adds up what all routers tell, minute by minute.

    Every monitor has one, fed with the pictures that all of them serve: one that becomes the leader
    within a minute has seen all of it. What it keeps grows with tasks and routers alone.

    What a router that was there before this monitor had counted until it is first seen is not this
    monitor's to tell. Whether it was there is told by its own clock alone, from its start to its
    report: that of this host may be another's.

    Args:
        begin_wall_ns: Since when the mesh is watched.
    """

    def __init__(self, begin_wall_ns: int) -> None:
        self._begin_s = begin_wall_ns / 1e9
        self._told: dict[_Process, tuple[bytes, _Told]] = {}
        self._minute_s: int | None = None
        self._tasks: dict[str, _Task] = defaultdict(_Task)
        self._looked_s = begin_wall_ns / 1e9
        self._observed_s = 0.0

    def take(
        self, picture: Picture | None, wall_s: float, watched_s: float | None = None
    ) -> pb.Minute | None:
        """Takes in the newest picture, None if there is none or an old one.

        Call it about once a second and shortly after the end of every minute: what has come since
        the last call counts to the minute of that call.

        Args:
            picture: The newest picture.
            wall_s: The time, seconds since 1970.
            watched_s: For how long the mesh has been watched; None: as the wall clock says.

        Returns:
            The minute that is over; None if none is, or if nothing of it was watched.
        """
        if self._minute_s is None:
            self._minute_s = _minute_of(wall_s)
        is_watched = picture is not None and 0.0 <= wall_s - self._looked_s <= _LONGEST_GAP_S
        if picture is not None:
            if is_watched:
                until_s = min(wall_s, float(self._minute_s + MINUTE_S))
                self._observed_s += max(0.0, until_s - max(self._looked_s, self._minute_s))
            self._looked_s = wall_s
            for report in picture.routers:
                self._add(report, wall_s - self._begin_s if watched_s is None else watched_s)
        if _minute_of(wall_s) == self._minute_s:
            return None
        minute = self._closed(picture)
        self._minute_s = _minute_of(wall_s)
        self._tasks.clear()
        self._observed_s = max(0.0, wall_s - self._minute_s) if is_watched else 0.0
        return minute if minute.HasField("observed") else None

    def _add(self, report: RouterReport, watched_s: float) -> None:
        process, encoded = (report.router_id, report.epoch), report.tasks.outcomes
        before = self._told.get(process)
        if not encoded or (before is not None and before[0] == encoded):
            return
        message = state_pb2.RouterLoad.FromString(encoded)
        told: _Told = {
            each.task: (
                np.array([getattr(each, name) for name in _NUMBERS]),
                {answers.tier: answers.answer_count for answers in each.answers},
            )
            for each in message.task_outcomes
        }
        self._told.pop(process, None)
        self._told[process] = encoded, told
        if len(self._told) > _MOST_ROUTERS:
            del self._told[next(iter(self._told))]
        if before is None and self._was_there(report, watched_s):
            return
        known = before[1] if before is not None else {}
        for name, (numbers_E, answers) in told.items():
            then_E, answers_then = known.get(name, (0.0, {}))
            # Counts fall where a killed worker's last ones are gone.
            grown_E = np.maximum(0.0, numbers_E - then_E)
            if grown_E.any():
                task = self._tasks[name]
                task.numbers_E += grown_E
                for tier, count in answers.items():
                    task.answers[tier] += max(0, count - answers_then.get(tier, 0))

    def _was_there(self, report: RouterReport, watched_s: float) -> bool:
        """Returns whether a router had started before the mesh was watched."""
        load = state_pb2.RouterLoad.FromString(report.encoded)
        if not load.HasField("report_time"):
            return report.epoch < self._begin_s * 1e9
        up_s = from_ns(load.report_time.ToNanoseconds() - report.epoch)
        # Its clock was set back since: better to count too little than what others have counted.
        return not 0.0 <= up_s <= watched_s

    def _closed(self, picture: Picture | None) -> pb.Minute:
        assert self._minute_s is not None
        minute = pb.Minute(start_time=timestamp_of(self._minute_s * 10**9))
        if self._observed_s > 0.0:
            # More if the clock was set back within the minute, which then took longer.
            minute.observed.CopyFrom(duration_of(min(self._observed_s, MINUTE_S)))
        for name, task in self._tasks.items():
            numbers = dict(zip(_NUMBERS, task.numbers_E.tolist(), strict=True))
            message = minute.tasks.add(task=name)
            for field in _SUMS:
                setattr(message, field, min(numbers.pop(field), MAX_COUNT))
            for field, value in numbers.items():
                setattr(message, field, round(min(value, MAX_COUNT)))
            for tier, count in task.answers.items():
                if count:
                    message.answers.add(tier=tier, answer_count=min(count, MAX_COUNT))
        if picture is not None:
            minute.device_count = len({view.spec.device for view in picture.endpoints})
            _add_state(minute, picture)
        return minute


def _add_state(minute: pb.Minute, picture: Picture) -> None:
    """Adds what routers tell of the tasks as they stand at the end of the minute."""
    rows = {task.task: task for task in minute.tasks}
    for report in picture.routers:
        load = state_pb2.RouterLoad.FromString(report.encoded)
        for told in load.task_attainments:
            task = rows.get(told.task)
            if task is not None:
                task.target = max(task.target, told.target)
                task.largest_quality = max(task.largest_quality, told.largest_quality)
        for latency in load.task_latencies:
            task = rows.get(latency.task)
            if task is not None:
                _merge(task, latency)


def _merge(task: pb.TaskMinute, told: state_pb2.TaskLatency) -> None:
    """Adds a router's latencies to those of the others."""
    if not task.HasField("latency"):
        task.latency.CopyFrom(told)
        return
    sum_ = task.latency
    sum_.cut_off_count = min(sum_.cut_off_count + told.cut_off_count, MAX_COUNT)
    if not told.answer_counts:
        return
    if not sum_.answer_counts:
        sum_.first_bucket = told.first_bucket
    first = min(sum_.first_bucket, told.first_bucket)
    parts = [(each.first_bucket - first, list(each.answer_counts)) for each in (sum_, told)]
    counts = np.zeros(max(start + len(part) for start, part in parts), np.int64)
    for start, part in parts:
        counts[start : start + len(part)] += part
    counts = np.minimum(counts, MAX_COUNT)
    sum_.first_bucket = first
    del sum_.answer_counts[:]
    sum_.answer_counts.extend(counts.tolist())


def _minute_of(wall_s: float) -> int:
    return int(wall_s // MINUTE_S) * MINUTE_S


def start_of(minute: pb.Minute) -> int:
    """Returns when a minute began, seconds since 1970."""
    return round(seconds_of(minute.start_time))
