"""The mesh's books: what became of requests over some minutes, and what might have.

What a metric here counts as an answer of no worth, a request that was late, refused or failed, it
counts among the requests all the same: nothing looks better because requests were turned away.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.latency_buckets import BUCKET_COUNT, quantile_s
from services.common.times import seconds_of
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import minutes_pb2 as pb

ENDS = ("on_time", "late", "refused", "failed", "cancelled")
LEAST_RECORDED = 0.9
"""With records of a smaller share of the admitted requests a minute has no figure in hindsight."""
SAME_QUALITY = 0.001
"""Performances that differ by less are the same."""
_ROUNDING = 1e-6


@dataclass(slots=True)
class Reckoned:
    """Sums over the minutes of which it is known what might have been.

    Attributes:
        ended: Requests in time, late, refused and failed.
        reward: What they earned.
        bound: What somebody who knew them beforehand could have earned, at most.
    """

    ended: int = 0
    reward: float = 0.0
    bound: float = 0.0

    def add(self, other: Reckoned) -> None:
        """Adds other sums."""
        self.ended += other.ended
        self.reward += other.reward
        self.bound += other.bound

    @property
    def regret(self) -> float | None:
        """Quality per request given up against the bound; None if nothing is known."""
        return (self.bound - self.reward) / self.ended if self.ended else None


@dataclass(slots=True)
class TaskBooks:
    """What became of one task's requests.

    Attributes:
        task: Its name.
        counts: Requests by how they ended, see `ENDS`.
        reward: Sum of what they earned.
        smooth: Sum of what their answers count by their lateness.
        largest: What they would have earned had the largest tier answered all in time.
        answers: Requests on time or late by tier.
        target: The target at the end; 0 = none.
        deadline_s: Deadline of requests that bring none, at the end; None if no router told.
        is_first_token: Whether that is the deadline of the first token, after which each one may
            have a due time of its own.
        told_minutes: Minutes with requests and a target.
        missed_minutes: Those in which the share in time was below it.
        reckoned: Sums of the minutes with a figure in hindsight.
    """

    task: str
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    reward: float = 0.0
    smooth: float = 0.0
    largest: float = 0.0
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    target: float = 0.0
    deadline_s: float | None = None
    is_first_token: bool = False
    told_minutes: int = 0
    missed_minutes: int = 0
    reckoned: Reckoned = field(default_factory=Reckoned)
    _answered: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BUCKET_COUNT))
    _cut_off: int = 0

    @property
    def ended(self) -> int:
        """Requests in time, late, refused and failed."""
        return self.counts.total() - self.counts["cancelled"]

    @property
    def attained(self) -> float | None:
        """Share of them in time; None if there was none."""
        return self.counts["on_time"] / self.ended if self.ended else None

    @property
    def performance(self) -> float | None:
        """Mean reward; None if nothing ended."""
        return self.reward / self.ended if self.ended else None

    @property
    def given_up(self) -> float | None:
        """Quality per request given up against a largest tier that is always in time."""
        return (self.largest - self.reward) / self.ended if self.ended else None

    def smooth_answers(self) -> float | None:
        """Answers, late ones discounted; None where a router of an earlier version told no sum."""
        is_told = self.smooth >= self.counts["on_time"] * (1.0 - _ROUNDING)
        return self.smooth if is_told else None

    def latency_s(self, quantile: float) -> float | None:
        """Time to the complete answer; infinite among what was cut off, None without an answer."""
        return quantile_s(self._answered.tolist(), self._cut_off, quantile)

    def add(self, minute: pb.TaskMinute) -> None:
        """Adds a minute."""
        counts = {name: getattr(minute, f"{name}_count") for name in ENDS}
        self.counts.update(counts)
        ended = ended_of(minute)
        self.reward += minute.delivered_reward_sum
        self.smooth += minute.smooth_answer_sum
        self.largest += ended * minute.largest_quality
        self.answers.update({each.tier: each.answer_count for each in minute.answers})
        self.target = minute.target
        if minute.target > 0.0 and ended:
            self.told_minutes += 1
            self.missed_minutes += minute.on_time_count < minute.target * ended
        if minute.HasField("latency"):
            told = minute.latency
            self.deadline_s = seconds_of(told.default_deadline)
            self.is_first_token = told.slo_kind > common_pb2.SLO_KIND_COMPLETE_ANSWER
            part = np.array(told.answer_counts, np.float64)
            self._answered[told.first_bucket : told.first_bucket + len(part)] += part
            self._cut_off += told.cut_off_count

    def merge(self, other: TaskBooks) -> None:
        """Adds another task's sums; what is of one task alone stays."""
        self.counts.update(other.counts)
        self.reward += other.reward
        self.smooth += other.smooth
        self.largest += other.largest
        self.answers.update(other.answers)
        self.reckoned.add(other.reckoned)


@dataclass(frozen=True, slots=True)
class Books:
    """What became of the mesh's requests over some minutes.

    Attributes:
        minutes: The minutes, in order of time.
        tasks: Their sums by task, in the order in which tasks came.
        total: Their sums.
        observed_s: How long the mesh was watched, seconds.
        device_count: Mean number of devices.
        reckoned_minutes: Minutes with requests and a figure in hindsight.
        busy_minutes: Minutes with requests.
        problems: Why others have none, with their number, as far as a trainer said.
        static_large: Devices with which the largest tier alone would have earned as much over the
            reckoned minutes; None if none is known, infinite if no number is enough.
    """

    minutes: Sequence[pb.Minute]
    tasks: dict[str, TaskBooks]
    total: TaskBooks
    observed_s: float
    device_count: float
    reckoned_minutes: int
    busy_minutes: int
    problems: collections.Counter[str]
    static_large: float | None


def ended_of(minute: pb.TaskMinute) -> int:
    """Returns a task's requests in time, late, refused and failed."""
    return minute.on_time_count + minute.late_count + minute.refused_count + minute.failed_count


def books_of(minutes: Sequence[pb.Minute]) -> Books:
    """Adds minutes up."""
    tasks: dict[str, TaskBooks] = {}
    reckoned: list[tuple[pb.Minute, Reckoned]] = []
    problems: collections.Counter[str] = collections.Counter()
    busy = 0
    for minute in minutes:
        for told in minute.tasks:
            tasks.setdefault(told.task, TaskBooks(told.task)).add(told)
        if not any(map(ended_of, minute.tasks)):
            continue
        busy += 1
        found = reckon(minute)
        if minute.hindsight.problem:
            problems[minute.hindsight.problem] += 1
        if found is None:
            continue
        whole = Reckoned()
        for task, part in found.items():
            tasks[task].reckoned.add(part)
            whole.add(part)
        reckoned.append((minute, whole))
    total = TaskBooks("")
    for each in tasks.values():
        total.merge(each)
    return Books(
        minutes=minutes,
        tasks=tasks,
        total=total,
        observed_s=sum(seconds_of(minute.observed) for minute in minutes),
        device_count=float(np.mean([m.device_count for m in minutes])) if minutes else 0.0,
        reckoned_minutes=len(reckoned),
        busy_minutes=busy,
        problems=problems,
        static_large=_static_large(reckoned),
    )


def reckon(minute: pb.Minute) -> dict[str, Reckoned] | None:
    """Returns what a minute's requests earned and could have earned, by task.

    A request without a record, such as one that admission refused, counts in the bound as if the
    largest tier could have answered it at no cost. So the bound stays one, and turning requests
    away never makes the regret smaller.

    Returns:
        None if there is no figure: nobody looked, or there are too few records.
    """
    if not minute.HasField("hindsight") or minute.hindsight.problem:
        return None
    hindsight = {each.task: each for each in minute.hindsight.tasks}
    found = {}
    recorded_total, admitted_total = 0, 0
    for told in minute.tasks:
        seen = hindsight.get(told.task, pb.TaskHindsight())
        ended, recorded, bound = ended_of(told), seen.recorded_count, seen.bound_sum
        admitted_total += ended - told.refused_count
        if recorded > ended:
            # Requests at the edges of the minute that the counters see on the other side.
            bound *= ended / recorded
            recorded = ended
        recorded_total += recorded
        bound += (ended - recorded) * told.largest_quality
        if ended:
            found[told.task] = Reckoned(ended, told.delivered_reward_sum, bound)
    if not found or recorded_total < LEAST_RECORDED * admitted_total:
        return None
    return found


def _static_large(reckoned: Iterable[tuple[pb.Minute, Reckoned]]) -> float | None:
    """Returns the fewest devices with which the largest tier alone earns as much.

    Of requests that left no record it is taken to earn as much as of the others, though they would
    have been load for it too: that errs in its favour.
    """
    goal, weight, curves = 0.0, 0, []
    for minute, whole in reckoned:
        points = minute.hindsight.static_large
        if points:
            goal += whole.reward
            weight += whole.ended
            curves.append((whole.ended, points))
    if not curves:
        return None
    goal -= SAME_QUALITY * weight
    most = max(points[-1].device_count for _ended, points in curves)
    count_D = np.arange(1, most + 1)
    earned_D = np.zeros(most)
    for ended, points in curves:
        known = [each.device_count for each in points], [each.performance for each in points]
        earned_D += ended * np.interp(count_D, *known)
    enough = np.flatnonzero(earned_D >= goal)
    return float(count_D[enough[0]]) if len(enough) else math.inf
