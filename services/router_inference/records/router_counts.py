"""What the workers of a router have counted together, those that ended among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from router.quality import Ratings
from services.common.latency_buckets import BUCKET_COUNT
from services.router_inference.records.accounts import (
    PRIORITIES,
    TASK_ENDS,
    Accounts,
    Counts,
    task_width,
)
from services.router_inference.workers.siblings import NoSiblings

_NAMES = tuple(field.name for field in fields(Counts))
_ENDS = [_NAMES.index(name) for name in ("on_time", "late", "refused", "cancelled", "failed")]
MOST_TASKS = 64
"""Tasks of which workers tell each other; their numbers may grow while a router serves."""
_LATENCY_WIDTH = BUCKET_COUNT + 1
_PRIORITY_WIDTH = len(PRIORITIES) * len(TASK_ENDS)
_RATING_WIDTH = len(Ratings._fields)
_OFFERED, _FAILED = _NAMES.index("offered"), _NAMES.index("failed")


class RouterCounts:
    """The counts of a router: those of its one process, or the sum over its workers."""

    def __init__(
        self,
        accounts: Accounts,
        tiers: Sequence[str],
        tasks: Sequence[str],
        siblings: NoSiblings,
    ) -> None:
        """Takes the counts of this process, the mesh's tiers and tasks."""
        self._accounts = accounts
        self.tiers = tiers
        """Names of the mesh's tiers."""
        self._siblings = siblings
        self.tasks = tasks
        self._latencies = np.zeros((MOST_TASKS, _LATENCY_WIDTH))
        self._ratings = np.zeros((_RATING_WIDTH, MOST_TASKS, len(tiers)))

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the mesh's tasks; after a change of settings each goes on from its counts."""
        return self._tasks

    @tasks.setter
    def tasks(self, names: Sequence[str]) -> None:
        self._tasks = names
        # Rows of the first tasks in what workers share, the one behind the last for those that have
        # none. Workers of other settings may have other tasks, or another order.
        places = self._siblings.task_places(names)[:MOST_TASKS]
        self._row_K = np.minimum(np.array(places, np.intp), MOST_TASKS)

    @property
    def of_conversations(self) -> Mapping[str, int]:
        """This process's decisions for requests of conversations; see `Accounts`."""
        return self._accounts.conversation_counts

    def show(self, *, is_last: bool = False) -> None:
        """Shows the siblings what this worker has counted up to now.

        Args:
            is_last: whether it counts no more; latencies are as `latencies` read them last else.
        """
        own = self._accounts
        if is_last:
            self._read_latencies()
        counts = [own.counts, *(own.tier_counts.get(tier) or Counts() for tier in self.tiers)]
        values = [float(getattr(each, name)) for each in counts for name in _NAMES]
        row = np.zeros(counts_width(self.tiers))
        row[: len(values)] = values
        by_task = self._laid_out(own.by_task(self.tasks[:MOST_TASKS], self.tiers)).ravel()
        row[len(values) : len(values) + len(by_task)] = by_task
        start = _latency_start(self.tiers)
        row[start - _PRIORITY_WIDTH : start] = own.by_priority().ravel()
        row[start:] = np.concatenate((self._latencies.ravel(), self._ratings.ravel()))
        self._siblings.show_counts(row)

    def read(self) -> tuple[Counts, Mapping[str, Counts]]:
        """Returns the router's counts, and those by tier that answered."""
        if self._siblings.is_alone:
            return self._accounts.counts, self._accounts.tier_counts
        self.show()
        rows = self._siblings.all_counts()[: _ends_width(self.tiers)]
        whole, *by_tier = (_counts(row) for row in rows.reshape(-1, len(_NAMES)))
        return whole, dict(zip(self.tiers, by_tier, strict=True))

    def by_task(self) -> NDArray[np.float64]:
        """Returns `Accounts.by_task` of the router; of several workers, of the first tasks."""
        if self._siblings.is_alone:
            return self._accounts.by_task(self.tasks, self.tiers)
        self.show()
        start = _ends_width(self.tiers)
        end = _latency_start(self.tiers) - _PRIORITY_WIDTH
        counts = self._siblings.all_counts()[start:end]
        return self._of_tasks(counts.reshape(MOST_TASKS, -1))

    def by_priority(self) -> NDArray[np.float64]:
        """Returns `Accounts.by_priority` of the router."""
        if self._siblings.is_alone:
            return self._accounts.by_priority()
        self.show()
        end = _latency_start(self.tiers)
        counts = self._siblings.all_counts()[end - _PRIORITY_WIDTH : end]
        return counts.reshape(len(PRIORITIES), -1).copy()

    def latencies(self) -> NDArray[np.float64]:
        """Returns `Accounts.latencies` of the router, of the first tasks it has room for.

        It takes the longer the more tasks and tiers there are; call it about once a second.
        """
        self._read_latencies()
        counts = self._latencies
        if not self._siblings.is_alone:
            self.show()
            start = _latency_start(self.tiers)
            shared = self._siblings.all_counts()[start : _rating_start(self.tiers)]
            counts = shared.reshape(-1, _LATENCY_WIDTH)
        return self._of_tasks(counts)

    def rate(self, task: int, tier: int, score: float) -> None:
        """Counts what a client says of an answer, 0 to 1; not beyond the first tasks."""
        if task < len(self._row_K) and (row := self._row_K[task]) < MOST_TASKS:
            self._ratings[:, row, tier] += 1.0, score, score * score

    def ratings(self) -> Ratings:
        """Returns what clients said to the router since it started, of the first tasks, [K, T].

        Plain means, which forget nothing.
        """
        sums = self._ratings
        if not self._siblings.is_alone:
            self.show()
            shared = self._siblings.all_counts()[_rating_start(self.tiers) :]
            sums = shared.reshape(sums.shape)
        count_KT, total_KT, square_KT = map(self._of_tasks, sums)
        share_KT = 1.0 / np.maximum(count_KT, 1.0)
        return Ratings(count_KT, share_KT * total_KT, share_KT * square_KT)

    def _read_latencies(self) -> None:
        self._latencies = self._laid_out(self._accounts.latencies(self.tasks[:MOST_TASKS]))

    def _laid_out(self, of_tasks_KW: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns rows of the first tasks as workers share them, [MOST_TASKS, W]."""
        rows = np.zeros((MOST_TASKS + 1, of_tasks_KW.shape[1]))
        rows[self._row_K] = of_tasks_KW
        return rows[:MOST_TASKS]

    def _of_tasks(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the rows of the first tasks, zero for those that have none; a copy."""
        beyond = np.zeros((1, rows.shape[1]))
        found_KW: NDArray[np.float64] = np.concatenate((rows, beyond))[self._row_K]
        return found_KW

    @property
    def in_flight(self) -> int:
        """Requests under way in the router."""
        whole, _ = self.read()
        return whole.offered - whole.ended


def counts_width(tiers: Sequence[str]) -> int:
    """Returns how many numbers a worker's counts are."""
    return _rating_start(tiers) + _RATING_WIDTH * MOST_TASKS * len(tiers)


def _rating_start(tiers: Sequence[str]) -> int:
    return _latency_start(tiers) + MOST_TASKS * _LATENCY_WIDTH


def _latency_start(tiers: Sequence[str]) -> int:
    return _ends_width(tiers) + task_width(tiers) * MOST_TASKS + _PRIORITY_WIDTH


def _ends_width(tiers: Sequence[str]) -> int:
    return (1 + len(tiers)) * len(_NAMES)


def as_ended(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the counts of a worker that is gone: what it had under way has failed."""
    ended = values.copy()
    ended[_FAILED] += ended[_OFFERED] - ended[_ENDS].sum()
    return ended


def _counts(row: NDArray[np.float64]) -> Counts:
    values = dict(zip(_NAMES, map(float, row), strict=True))
    reward_sum = values.pop("delivered_reward_sum")
    return Counts(
        **{name: round(value) for name, value in values.items()}, delivered_reward_sum=reward_sum
    )
