"""Joining records: order, losses, gaps, and a bound on memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.learning.online.joining import (
    DecisionRecord,
    Ending,
    OutcomeRecord,
    RecordJoiner,
)


def _decision(router: str, sequence: int, time_s: float, epoch: int = 1) -> DecisionRecord:
    return DecisionRecord(
        (router, epoch, sequence), time_s, np.zeros((1, 2), np.float32), 0, "s", "v", 1.0, 0.4, "t"
    )


def _outcome(router: str, sequence: int, reward: float = 1.0, **more: Any) -> OutcomeRecord:
    ending = more.get("ending", Ending.ANSWERED)
    return OutcomeRecord((router, more.get("epoch", 1), sequence), reward, ending)


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
    joiner = RecordJoiner(patience_s=1e9)
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
    joiner = RecordJoiner(patience_s=10.0)
    for sequence, time_s in ((1, 0.0), (2, 1.0), (3, 2.0)):
        joiner.add_decision(_decision("a", sequence, time_s))
    joiner.add_outcome(_outcome("a", 1))
    joiner.add_outcome(_outcome("a", 3))
    assert [s.decision.key[2] for s in joiner.release()] == [1]
    joiner.add_outcome(_outcome("a", 2))
    assert [s.decision.key[2] for s in joiner.release()] == [2, 3]


def test_decision_without_outcome_is_closed_as_cancelled() -> None:
    """A dead router's decisions do not hold the others up for longer than the patience."""
    joiner = RecordJoiner(patience_s=5.0)
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
    joiner = RecordJoiner(patience_s=5.0)
    joiner.add_decision(_decision("a", 1, 0.0))
    joiner.add_outcome(_outcome("a", 1, 0.7, ending=Ending.CANCELLED))
    (step,) = joiner.release()
    assert (step.counts, step.reward) == (False, 0.0)


def test_gap_in_sequence_is_marked() -> None:
    """Missing records show at the next decision of that router; a new epoch is a gap too."""
    joiner = RecordJoiner(patience_s=5.0)
    for sequence, time_s, epoch in ((1, 0.0, 1), (2, 1.0, 1), (4, 2.0, 1), (1, 3.0, 2)):
        joiner.add_decision(_decision("a", sequence, time_s, epoch))
        joiner.add_outcome(_outcome("a", sequence, epoch=epoch))
    assert [s.gap_before for s in joiner.release()] == [False, False, True, True]
    assert joiner.gap_count == 2


def test_repeated_and_late_records_change_nothing() -> None:
    """Redelivered records are taken once; what comes after its time is counted and dropped."""
    joiner = RecordJoiner(patience_s=5.0)
    for _ in range(2):
        joiner.add_decision(_decision("a", 1, 1.0))
        joiner.add_outcome(_outcome("a", 1))
    assert len(joiner.release()) == 1
    joiner.add_decision(_decision("b", 1, 0.5))
    assert joiner.release() == []
    assert joiner.late_count == 1


def test_memory_is_bounded() -> None:
    """Outcomes without decisions and decisions without outcomes both stay below the limit."""
    joiner = RecordJoiner(patience_s=1e9, limit=10)
    for sequence in range(1, 50):
        joiner.add_decision(_decision("a", sequence, float(sequence)))
        joiner.add_outcome(_outcome("ghost", sequence))
    joiner.release()
    assert len(joiner) <= 10
    assert joiner.orphan_count == 39


def test_a_router_that_is_behind_is_waited_for() -> None:
    """Records it could not write for a while are merged where they belong, and none is too late."""
    joiner = RecordJoiner(patience_s=60.0, order_s=20.0)

    def add(router: str, sequence: int, time_s: float) -> None:
        assert joiner.add_decision(_decision(router, sequence, time_s))
        joiner.add_outcome(_outcome(router, sequence))

    add("a", 1, 0.0)
    add("b", 1, 1.0)
    assert [s.decision.time_s for s in joiner.release()] == [0.0]
    for sequence in range(2, 10):
        add("b", sequence, float(sequence))
    assert joiner.release() == []
    add("a", 2, 8.0)
    assert [s.decision.time_s for s in joiner.release()] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    joiner.forget_router("a")
    assert [s.decision.time_s for s in joiner.release()] == [9.0]
    assert joiner.late_count == 0


def test_a_silent_router_is_not_waited_for_without_end() -> None:
    """Whoever has written nothing for so long has nothing to write, or is gone."""
    joiner = RecordJoiner(patience_s=60.0, order_s=5.0)
    for router, sequence, time_s in (("a", 1, 0.0), ("b", 1, 4.0), ("b", 2, 5.0), ("b", 3, 6.0)):
        joiner.add_decision(_decision(router, sequence, time_s))
        joiner.add_outcome(_outcome(router, sequence))
    assert len(joiner.release()) == 4
