"""The reward of an answer."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.reward import answer_reward


@pytest.mark.parametrize("decay_s", [0.0, 0.2])
@pytest.mark.parametrize("lateness_s", [-3.0, 0.0])
def test_an_answer_on_time_earns_its_quality(lateness_s: float, decay_s: float) -> None:
    """Being early earns nothing more, and the deadline itself is on time."""
    assert answer_reward(0.7, lateness_s, decay_s) == 0.7


def test_a_late_answer_to_a_hard_deadline_earns_nothing() -> None:
    """However little it is late."""
    assert answer_reward(1.0, 1e-9, 0.0) == 0.0


def test_a_late_answer_to_a_soft_deadline_decays() -> None:
    """After one decay time a third is left, about."""
    assert answer_reward(0.8, 0.2, 0.2) == pytest.approx(0.8 * math.exp(-1.0))


@given(
    quality=st.floats(0.0, 1.0),
    lateness_s=st.floats(-1e12, 1e12),
    decay_s=st.floats(0.0, 1e6),
)
def test_a_reward_is_never_more_than_the_quality(
    quality: float, lateness_s: float, decay_s: float
) -> None:
    """It is finite, not negative, and bounded, however late."""
    assert 0.0 <= answer_reward(quality, lateness_s, decay_s) <= quality
