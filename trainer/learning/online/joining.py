"""What routers write down, a Decision and an Outcome, joined and merged in time order.

A router writes one Decision when it chooses and one Outcome when the request has ended. A decision
slows down every later request on its device, whichever router sent it, so the records of all
routers are merged before returns are formed (`returns.py`).

A cancelled request says nothing about the policy: it is left out as a reward and never trained on.
A gap in a router's sequence numbers means that rewards are missing; returns end there.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DecisionKey = tuple[str, int, int]
"""Router id, epoch, sequence number."""


_MOST_ROUTERS = 1_000


class Ending(enum.Enum):
    """How a request ended, as far as learning cares."""

    ANSWERED = "answered"
    """On time or late: its reward is the policy's."""
    REFUSED = "refused"
    """Failed, or refused after the choice: reward zero, but the policy made it."""
    CANCELLED = "cancelled"
    """The client left, or nobody reported: says nothing about the policy."""


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """One decision as a router wrote it.

    Attributes:
        key: router, epoch, sequence.
        time_s: when it was made, seconds since 1970.
        features_CF: observation, float32, None if the policy used none.
        action: chosen row.
        feature_schema: schema of `features_CF`.
        policy_version: version of the policy.
        behavior_probability: probability of the action under the behaviour policy, (0, 1].
        slack_s: time left to the deadline, seconds.
        task: name of the task.
    """

    key: DecisionKey
    time_s: float
    features_CF: NDArray[np.float32] | None
    action: int
    feature_schema: str
    policy_version: str
    behavior_probability: float
    slack_s: float
    task: str


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    """How one request ended.

    Attributes:
        key: router, epoch, sequence of its decision.
        reward: reward of the decision, 0 to 1.
        ending: how it ended.
    """

    key: DecisionKey
    reward: float
    ending: Ending


class Step(NamedTuple):
    """One decision whose outcome is known.

    Attributes:
        decision: the decision.
        reward: its reward; 0 if cancelled.
        counts: False for a cancelled one.
        gap_before: True if records of this router are missing right before it.
    """

    decision: DecisionRecord
    reward: float
    counts: bool
    gap_before: bool


class RecordJoiner:
    """Joins records as they come, in any order, and releases them merged in time order.

    A decision waits for its outcome, at most `patience_s` behind the newest decision; then it is
    closed as cancelled, as a router that died would leave it. It waits too for the other routers,
    whose records may have been held up: no router's decisions are released beyond the newest of
    another one that is at most `order_s` behind. Memory is bounded by `limit`.
    """

    def __init__(self, *, patience_s: float, order_s: float = 0.0, limit: int = 100_000) -> None:
        """Starts empty.

        Args:
            patience_s: longest wait for an outcome, seconds, > 0.
            order_s: longest wait for another router, seconds; 0: nobody waits.
            limit: most decisions that wait.
        """
        self._patience_s = patience_s
        self._order_s = order_s
        self._newest_of: OrderedDict[str, float] = OrderedDict()
        self._limit = limit
        self._waiting: dict[DecisionKey, DecisionRecord] = {}
        self._outcomes: OrderedDict[DecisionKey, OutcomeRecord] = OrderedDict()
        self._expected: dict[str, tuple[int, int]] = {}
        self._released_s = -np.inf
        self._newest_s = -np.inf
        self.late_count = 0
        self.orphan_count = 0
        self.expired_count = 0
        self.gap_count = 0

    @property
    def newest_s(self) -> float:
        """When the newest decision was made, seconds; minus infinity before the first."""
        return float(self._newest_s)

    def __len__(self) -> int:
        """Returns the number of decisions that wait."""
        return len(self._waiting)

    def add_decision(self, decision: DecisionRecord) -> bool:
        """Takes in a decision; a repeated one changes nothing.

        Returns:
            False for one that is too old to be merged any more: it is dropped and counted.
        """
        if decision.time_s < self._released_s:
            self.late_count += 1
            return False
        self._newest_s = max(self._newest_s, decision.time_s)
        router = decision.key[0]
        self._newest_of[router] = max(self._newest_of.pop(router, -np.inf), decision.time_s)
        if len(self._newest_of) > _MOST_ROUTERS:
            self._newest_of.popitem(last=False)
        self._waiting.setdefault(decision.key, decision)
        return True

    def forget_router(self, router: str) -> None:
        """Waits no longer for a router, as it has ended."""
        self._newest_of.pop(router, None)

    def add_outcome(self, outcome: OutcomeRecord) -> None:
        """Takes in an outcome; late feedback for a released decision is counted and dropped."""
        self._outcomes.setdefault(outcome.key, outcome)
        while len(self._outcomes) > self._limit:
            self._outcomes.popitem(last=False)
            self.orphan_count += 1

    def release(self) -> list[Step]:
        """Returns the steps that are settled: every earlier decision is settled as well."""
        overdue_s = self._newest_s - self._patience_s
        excess = len(self._waiting) - self._limit
        since_s = self._newest_s - self._order_s
        # Whatever the wait, it ends at the newest decision of the router furthest behind.
        edge_s = min((each for each in self._newest_of.values() if each > since_s), default=np.inf)
        steps: list[Step] = []
        for decision in sorted(self._waiting.values(), key=lambda d: (d.time_s, d.key)):
            is_due = decision.time_s <= overdue_s or len(steps) < excess
            if decision.time_s > edge_s and not is_due:
                break
            outcome = self._outcomes.pop(decision.key, None)
            if outcome is None:
                if not is_due:
                    break
                self.expired_count += 1
            counts = outcome is not None and outcome.ending is not Ending.CANCELLED
            reward = outcome.reward if outcome is not None and counts else 0.0
            del self._waiting[decision.key]
            steps.append(Step(decision, reward, counts, self._is_gap(decision.key)))
            self._released_s = decision.time_s
        return steps

    def _is_gap(self, key: DecisionKey) -> bool:
        """Returns whether records of this router are missing before `key`."""
        router, epoch, sequence = key
        known = self._expected.pop(router, None)
        self._expected[router] = (epoch, sequence + 1)
        if len(self._expected) > _MOST_ROUTERS:
            del self._expected[next(iter(self._expected))]
        if known is None or known[0] != epoch:
            gap = sequence != 1 or known is not None
        else:
            gap = sequence != known[1]
        self.gap_count += gap
        return gap
