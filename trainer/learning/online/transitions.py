"""From records to transitions: joins decisions with outcomes and merges routers in time order.

A router writes one Decision when it chooses and one Outcome when the request has ended. A decision
slows down every later request on its device, whichever router sent it, so its return must run over
the merged traffic of all routers: n-step in *time*, not in requests, discounted by elapsed time.

    G_i = sum over k with t_i <= t_k < t_i + horizon of exp(-(t_k - t_i)/tau) (r_k - baseline_k)
    target_i = G_i + exp(-(t_j - t_i)/tau) * V(s_j)
    j = the first decision at or after t_i + horizon

The reward of a decision counts at the time of its decision. A cancelled one earns nothing and costs
nothing: it is left out as a reward and never trained on. A gap in a router's sequence numbers means
rewards are missing; a return that would run over it is cut short there (`truncated`) and bootstraps
from the last decision before the gap.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DecisionKey = tuple[str, int, int]
"""Router id, epoch, sequence number."""


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


class Returns(NamedTuple):
    """Time-spanning returns of N decisions in time order.

    Attributes:
        return_N: discounted sum of rewards over the horizon.
        next_N: index of the decision to bootstrap from, -1 if there is none yet.
        discount_N: discount of that bootstrap, 0 to 1.
        complete_N: True if the return is final: it spans its horizon, or was cut by a gap.
        truncated_N: True if it was cut by a gap.
        dead_N: True if it never will be complete: a gap follows right after the decision.
    """

    return_N: NDArray[np.float64]
    next_N: NDArray[np.int64]
    discount_N: NDArray[np.float64]
    complete_N: NDArray[np.bool_]
    truncated_N: NDArray[np.bool_]
    dead_N: NDArray[np.bool_]


def time_returns(
    time_N: NDArray[np.float64],
    reward_N: NDArray[np.float64],
    gap_N: NDArray[np.bool_],
    tau_s: float,
    horizon_s: float,
) -> Returns:
    """Computes the returns of decisions in time order in O(N log N).

    Args:
        time_N: times, seconds, never falling.
        reward_N: rewards, baselines already taken off.
        gap_N: True where records are missing right before this decision.
        tau_s: time constant of the discount, seconds, > 0.
        horizon_s: time a return spans, seconds, > 0.
    """
    count = len(time_N)
    if count == 0:
        none, no = np.zeros(0), np.zeros(0, bool)
        return Returns(none, none.astype(np.int64), none, no, no, no)
    # First index at or after the end of each horizon; a gap strictly after i cuts earlier.
    end_N = np.searchsorted(time_N, time_N + horizon_s, side="left")
    index_N = np.arange(count)
    gap_at = np.append(np.flatnonzero(gap_N), count)
    cut_N = gap_at[np.searchsorted(gap_at, index_N, side="right")]
    # A return may bootstrap from the decision before the gap, which is its last trusted state.
    truncated_N = (cut_N < count) & (cut_N <= end_N)
    next_N = np.where(truncated_N, cut_N - 1, end_N)
    complete_N = (next_N < count) & (next_N > index_N)
    last_N = np.minimum(next_N, count)
    return_N = _discounted_sums(time_N, reward_N, last_N, tau_s)
    safe_N = np.minimum(last_N, count - 1)
    discount_N = np.exp(-(time_N[safe_N] - time_N) / tau_s)
    return Returns(
        return_N,
        np.where(complete_N, next_N, -1),
        np.where(complete_N, discount_N, 0.0),
        complete_N,
        truncated_N & complete_N,
        truncated_N & ~complete_N,
    )


def _discounted_sums(
    time_N: NDArray[np.float64],
    reward_N: NDArray[np.float64],
    last_N: NDArray[np.int64],
    tau_s: float,
) -> NDArray[np.float64]:
    """Returns sum over i <= k < last_i of exp(-(t_k - t_i)/tau) r_k.

    By backward accumulation A_i = r_i + exp(-(t_{i+1} - t_i)/tau) A_{i+1}, the sum is
    A_i - exp(-(t_last - t_i)/tau) A_last: stable, since every factor is at most 1.
    """
    count = len(time_N)
    decay = np.exp(-np.diff(time_N) / tau_s).tolist()
    tail = [0.0] * (count + 1)
    rewards = reward_N.tolist()
    total = 0.0
    for i in range(count - 1, -1, -1):
        total = rewards[i] + (decay[i] * total if i < count - 1 else 0.0)
        tail[i] = total
    tail_N = np.array(tail)
    factor_N = np.exp(-(time_N[np.minimum(last_N, count - 1)] - time_N) / tau_s)
    factor_N[last_N >= count] = 0.0
    sums: NDArray[np.float64] = tail_N[:count] - factor_N * tail_N[last_N]
    return sums


class TransitionJoiner:
    """Joins records as they come, in any order, and releases them merged in time order.

    A decision waits for its outcome, at most `patience_s` behind the newest decision; then it is
    closed as cancelled, as a router that died would leave it. Memory is bounded by `limit`.
    """

    def __init__(self, *, patience_s: float, limit: int = 100_000) -> None:
        """Starts empty; `patience_s` > 0 seconds, at most `limit` decisions wait."""
        self._patience_s = patience_s
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

    def __len__(self) -> int:
        """Returns the number of decisions that wait."""
        return len(self._waiting)

    def add_decision(self, decision: DecisionRecord) -> None:
        """Takes in a decision; a repeated one changes nothing, one too old is dropped."""
        if decision.time_s < self._released_s:
            self.late_count += 1
            return
        self._newest_s = max(self._newest_s, decision.time_s)
        self._waiting.setdefault(decision.key, decision)

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
        steps: list[Step] = []
        for decision in sorted(self._waiting.values(), key=lambda d: (d.time_s, d.key)):
            outcome = self._outcomes.pop(decision.key, None)
            if outcome is None:
                if decision.time_s > overdue_s and len(steps) >= excess:
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
        known = self._expected.get(router)
        self._expected[router] = (epoch, sequence + 1)
        if known is None or known[0] != epoch:
            gap = sequence != 1 or known is not None
        else:
            gap = sequence != known[1]
        self.gap_count += gap
        return gap


def steps_to_arrays(
    steps: Sequence[Step], baseline: Iterable[float] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Returns times, rewards with `baseline` taken off where the step counts, and gap flags."""
    time_N = np.array([step.decision.time_s for step in steps], dtype=np.float64)
    reward_N = np.array([step.reward for step in steps], dtype=np.float64)
    counts_N = np.array([step.counts for step in steps], dtype=bool)
    if baseline is not None:
        reward_N = reward_N - np.fromiter(baseline, dtype=np.float64, count=len(steps))
    reward_N[~counts_N] = 0.0
    gap_N = np.array([step.gap_before for step in steps], dtype=bool)
    return time_N, reward_N, gap_N
