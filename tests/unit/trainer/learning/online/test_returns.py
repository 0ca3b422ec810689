"""Returns over time: their definition, gaps, and what a long history does to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learning.online.joining import DecisionRecord, Step
from trainer.learning.online.returns import steps_to_arrays, time_returns

TAU_S = 0.3
HORIZON_S = 0.4


def _reference(time: Any, reward: Any, gap: Any, i: int) -> tuple[float, int]:
    """The definition, term by term: (return, index to bootstrap from or -1)."""
    total, k = 0.0, i
    while k < len(time) and time[k] < time[i] + HORIZON_S:
        if k + 1 < len(time) and gap[k + 1]:
            return total, (k if k > i else -1)
        total += math.exp(-(time[k] - time[i]) / TAU_S) * reward[k]
        k += 1
    return total, (k if k < len(time) else -1)


times = st.lists(st.floats(0.0, 0.2), min_size=1, max_size=60).map(lambda d: np.cumsum(d))


@settings(max_examples=200, deadline=None)
@given(time=times, seed=st.integers(0, 2**31), gaps=st.floats(0.0, 0.3))
def test_returns_equal_their_definition(time: Any, seed: int, gaps: float) -> None:
    """The fast form agrees with the sum written out, gaps and ties included."""
    rng = np.random.default_rng(seed)
    reward = rng.random(len(time))
    gap = rng.random(len(time)) < gaps
    result = time_returns(time, reward, gap, TAU_S, HORIZON_S)
    for i in range(len(time)):
        total, following = _reference(time, reward, gap, i)
        assert result.next_N[i] == following
        assert result.complete_N[i] == (following >= 0)
        if following >= 0:
            assert result.return_N[i] == pytest.approx(total, abs=1e-9)
            expected = math.exp(-(time[following] - time[i]) / TAU_S)
            assert result.discount_N[i] == pytest.approx(expected)


def test_horizon_counts_time_not_requests() -> None:
    """Ten times the rate gives ten times the rewards in a return, at the same discount."""
    slow = np.arange(0.0, 4.0, 0.1)
    fast = np.arange(0.0, 4.0, 0.01)
    a = time_returns(slow, np.ones(len(slow)), np.zeros(len(slow), bool), TAU_S, HORIZON_S)
    b = time_returns(fast, np.ones(len(fast)), np.zeros(len(fast), bool), TAU_S, HORIZON_S)
    assert b.return_N[0] / a.return_N[0] == pytest.approx(10.0, rel=0.2)
    assert b.discount_N[0] == pytest.approx(a.discount_N[0], rel=0.05)


def test_long_histories_do_not_lose_precision() -> None:
    """A day of stamps since 1970 gives the same return as the same pattern at time zero."""
    offset = np.arange(0.0, 100.0, 0.05)
    reward = np.sin(offset)
    gap = np.zeros(len(offset), bool)
    near = time_returns(offset, reward, gap, TAU_S, HORIZON_S + 1e-3)
    far = time_returns(offset + 1.8e9, reward, gap, TAU_S, HORIZON_S + 1e-3)
    np.testing.assert_allclose(near.return_N[:1000], far.return_N[:1000], atol=1e-4)


def test_empty() -> None:
    """No decisions, no returns."""
    assert len(time_returns(np.zeros(0), np.zeros(0), np.zeros(0, bool), 1.0, 1.0).return_N) == 0


def _decision(router: str, sequence: int, time_s: float, epoch: int = 1) -> DecisionRecord:
    return DecisionRecord(
        (router, epoch, sequence), time_s, np.zeros((1, 2), np.float32), 0, "s", "v", 1.0, 0.4, "t"
    )


def test_arrays_leave_cancelled_out() -> None:
    """A cancelled step has reward zero, whatever the baseline."""
    steps = [
        Step(_decision("a", 1, 0.0), 0.8, True, False),
        Step(_decision("a", 2, 1.0), 0.0, False, True),
    ]
    time_N, reward_N, gap_N = steps_to_arrays(steps, [0.5, 0.5])
    np.testing.assert_allclose(time_N, [0.0, 1.0])
    np.testing.assert_allclose(reward_N, [0.3, 0.0])
    assert gap_N.tolist() == [False, True]
