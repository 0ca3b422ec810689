"""The mean reward per task: what it restores and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.learning.online.baseline import RewardBaseline


def test_a_baseline_goes_on_from_its_state() -> None:
    """The next reward finds the same mean."""
    first, second = RewardBaseline(), RewardBaseline()
    for reward in (0.0, 1.0, 0.5):
        first.observe("echo", reward)
    second.set_state(first.get_state())
    assert second.observe("echo", 0.0) == first.observe("echo", 0.0)


@pytest.mark.parametrize(
    "state",
    [{"a": [1.0]}, {"a": ["x", 1]}, {"a": [float("nan"), 1]}, {"a": [0.5, 1.5]}, [], 5, {"a": 1}],
)
def test_what_is_no_state_is_refused(state: Any) -> None:
    """One of two errors, whatever stands there; nothing is taken of it."""
    baseline = RewardBaseline()
    if state == []:
        baseline.set_state(state)
    else:
        with pytest.raises((TypeError, ValueError)):
            baseline.set_state(state)
    assert baseline.get_state() == {}
