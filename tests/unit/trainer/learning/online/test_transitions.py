"""Joining records and forming returns over time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learning.online.transitions import (
    DecisionRecord,
    Ending,
    OutcomeRecord,
    Step,
    TransitionJoiner,
    steps_to_arrays,
    time_returns,
)

TAU_S = 0.3
HORIZON_S = 0.4


def _decision(router: str, sequence: int, time_s: float, epoch: int = 1) -> DecisionRecord:
    return DecisionRecord(
        (router, epoch, sequence), time_s, np.zeros((1, 2), np.float32), 0, "s", "v", 1.0, 0.4, "t"
    )


def _outcome(router: str, sequence: int, reward: float = 1.0, **more: Any) -> OutcomeRecord:
    ending = more.get("ending", Ending.ANSWERED)
    return OutcomeRecord((router, more.get("epoch", 1), sequence), reward, ending)


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


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_joiner_merges_routers_in_time_order_without_loss(data: st.DataObject) -> None:
    """In any order of arrival, each decision comes out once, in time order, with its reward."""
    records: list[Any] = []
    expected: dict[Any, float] = {}
    for router in ("a", "b", "c"):
        steps = data.draw(st.lists(st.floats(0.001, 0.3), max_size=8))
        for sequence, time_s in enumerate(np.cumsum(steps), start=1):
            reward = sequence / 10.0
            records += [_decision(router, sequence, time_s), _outcome(router, sequence, reward)]
            expected[router, 1, sequence] = reward
    joiner = TransitionJoiner(patience_s=1e9)
    for record in data.draw(st.permutations(records)):
        if isinstance(record, DecisionRecord):
            joiner.add_decision(record)
        else:
            joiner.add_outcome(record)
    steps_out = joiner.release()
    assert {s.decision.key: s.reward for s in steps_out} == expected
    released = [s.decision.time_s for s in steps_out]
    assert released == sorted(released)
    assert not any(s.gap_before for s in steps_out)
    assert len(joiner) == 0


def test_open_decision_holds_back_later_ones() -> None:
    """A step is released only when every earlier decision is settled."""
    joiner = TransitionJoiner(patience_s=10.0)
    for sequence, time_s in ((1, 0.0), (2, 1.0), (3, 2.0)):
        joiner.add_decision(_decision("a", sequence, time_s))
    joiner.add_outcome(_outcome("a", 1))
    joiner.add_outcome(_outcome("a", 3))
    assert [s.decision.key[2] for s in joiner.release()] == [1]
    joiner.add_outcome(_outcome("a", 2))
    assert [s.decision.key[2] for s in joiner.release()] == [2, 3]


def test_decision_without_outcome_is_closed_as_cancelled() -> None:
    """A dead router's decisions do not hold the others up for longer than the patience."""
    joiner = TransitionJoiner(patience_s=5.0)
    joiner.add_decision(_decision("dead", 1, 0.0))
    joiner.add_decision(_decision("a", 1, 1.0))
    joiner.add_outcome(_outcome("a", 1))
    assert joiner.release() == []
    joiner.add_decision(_decision("a", 2, 6.0))
    first, second = joiner.release()
    assert (first.counts, first.reward) == (False, 0.0)
    assert (second.counts, second.reward) == (True, 1.0)
    assert joiner.expired_count == 1


def test_cancelled_is_no_miss() -> None:
    """A cancelled request neither earns nor counts."""
    joiner = TransitionJoiner(patience_s=5.0)
    joiner.add_decision(_decision("a", 1, 0.0))
    joiner.add_outcome(_outcome("a", 1, 0.7, ending=Ending.CANCELLED))
    (step,) = joiner.release()
    assert (step.counts, step.reward) == (False, 0.0)


def test_gap_in_sequence_is_marked() -> None:
    """Missing records show at the next decision of that router; a new epoch is a gap too."""
    joiner = TransitionJoiner(patience_s=5.0)
    for sequence, time_s, epoch in ((1, 0.0, 1), (2, 1.0, 1), (4, 2.0, 1), (1, 3.0, 2)):
        joiner.add_decision(_decision("a", sequence, time_s, epoch))
        joiner.add_outcome(_outcome("a", sequence, epoch=epoch))
    assert [s.gap_before for s in joiner.release()] == [False, False, True, True]
    assert joiner.gap_count == 2


def test_repeated_and_late_records_change_nothing() -> None:
    """Redelivered records are taken once; what comes after its time is counted and dropped."""
    joiner = TransitionJoiner(patience_s=5.0)
    for _ in range(2):
        joiner.add_decision(_decision("a", 1, 1.0))
        joiner.add_outcome(_outcome("a", 1))
    assert len(joiner.release()) == 1
    joiner.add_decision(_decision("b", 1, 0.5))
    assert joiner.release() == []
    assert joiner.late_count == 1


def test_memory_is_bounded() -> None:
    """Outcomes without decisions and decisions without outcomes both stay below the limit."""
    joiner = TransitionJoiner(patience_s=1e9, limit=10)
    for sequence in range(1, 50):
        joiner.add_decision(_decision("a", sequence, float(sequence)))
        joiner.add_outcome(_outcome("ghost", sequence))
    joiner.release()
    assert len(joiner) <= 10
    assert joiner.orphan_count == 39


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
