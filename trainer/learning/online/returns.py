"""Returns that span a stretch of time over the merged traffic, discounted by elapsed time.

    G_i = sum over k with t_i <= t_k < t_i + horizon of exp(-(t_k - t_i)/tau) (r_k - baseline_k)
    target_i = G_i + exp(-(t_j - t_i)/tau) * V(s_j)
    j = the first decision at or after t_i + horizon

n-step in *time*, not in requests. The reward of a decision counts at the time of its decision; a
cancelled one earns nothing and costs nothing. A return that would run over a gap in the records is
cut short there (`truncated`) and bootstraps from the last decision before the gap.

Shape letters: N decisions in time order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainer.learning.online.joining import Step


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
