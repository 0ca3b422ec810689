"""How admission learns its caution from outcomes: rise, limits, fall."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import safety
from router.safety import Caution, SafetyLimits

LIMITS = SafetyLimits()
WINDOW_S = 0.4
HIGHEST = math.log(LIMITS.pessimism / LIMITS.optimism)
ENDS = st.lists(st.tuples(st.floats(0.0, 2.0), st.booleans(), st.booleans()), max_size=200)


def learn(caution: Caution, now_s: float, missed: bool, limits: SafetyLimits = LIMITS) -> None:
    """Teaches one end."""
    safety.learn_end(caution, now_s, WINDOW_S, missed, limits.optimism, limits.pessimism)


def overloaded(now_s: float = 10.0) -> Caution:
    """Returns the caution after one deadline in which everything missed."""
    caution = Caution(at_s=now_s - WINDOW_S)
    for k in range(100):
        learn(caution, now_s - WINDOW_S * (1.0 - k / 99.0), missed=True)
    caution.refused_s = now_s
    return caution


@given(ENDS)
def test_the_factor_stays_between_optimism_and_pessimism(
    ends: list[tuple[float, bool, bool]],
) -> None:
    """No sequence of ends and refusals takes the factor out of its range."""
    caution, now_s = Caution(), 0.0
    for gap_s, missed, refused in ends:
        now_s += gap_s
        learn(caution, now_s, missed)
        if refused:
            caution.refused_s = now_s
        factor = safety.admission_factor(caution, LIMITS.optimism)
        assert LIMITS.optimism <= factor <= LIMITS.pessimism * (1.0 + 1e-12)


@given(ENDS)
def test_without_a_miss_the_factor_is_exactly_optimism(
    ends: list[tuple[float, bool, bool]],
) -> None:
    """Where deadlines are met nothing changes, not even by a rounding error."""
    caution, now_s = Caution(), 0.0
    for gap_s, _, _ in ends:
        now_s += gap_s
        learn(caution, now_s, missed=False)
        assert safety.admission_factor(caution, LIMITS.optimism) == LIMITS.optimism


def test_one_deadline_of_misses_brings_full_caution() -> None:
    """What a decision does shows one deadline later, and by then the factor is at its limit."""
    factor = safety.admission_factor(overloaded(), LIMITS.optimism)
    assert factor == pytest.approx(LIMITS.pessimism)


def test_a_tolerated_share_of_misses_changes_nothing() -> None:
    """One miss in fifty, well below the tolerated share, never raises the factor."""
    caution = Caution()
    for k in range(2_000):
        learn(caution, 0.01 * k, missed=k % 50 == 49)
    assert safety.TOLERATED_MISSES > 1 / 50
    assert caution.raised == 0.0


def test_a_share_of_misses_above_the_tolerated_one_raises_the_factor() -> None:
    """One miss in ten does."""
    caution = Caution()
    for k in range(2_000):
        learn(caution, 0.01 * k, missed=k % 10 == 9)
    assert caution.raised > 0.5 * HIGHEST


def test_the_factor_rests_again_some_deadlines_after_the_last_refusal() -> None:
    """It falls from its limit to rest in HIGHEST / QUIET_FALL deadlines of quiet, not before."""
    rest_s = 10.0 + WINDOW_S * (1.0 + HIGHEST / safety.QUIET_FALL)
    caution = overloaded(10.0)
    safety.relax(caution, rest_s - 2.0 * WINDOW_S, WINDOW_S)
    assert caution.raised > 0.0
    safety.relax(caution, rest_s + 1e-6, WINDOW_S)
    assert caution.raised == 0.0


def test_the_factor_falls_slower_while_requests_are_refused() -> None:
    """A refusal per deadline says that the overload goes on."""
    quiet, refusing = overloaded(10.0), overloaded(10.0)
    for k in range(1, 11):
        safety.relax(refusing, 10.0 + k * WINDOW_S, WINDOW_S)
        refusing.refused_s = refusing.at_s
    safety.relax(quiet, 10.0 + 10 * WINDOW_S, WINDOW_S)
    assert HIGHEST - refusing.raised == pytest.approx(10 * safety.FALL)
    assert HIGHEST - quiet.raised == pytest.approx(safety.FALL + 9 * safety.QUIET_FALL)


def test_the_fall_does_not_depend_on_how_often_it_is_asked_for() -> None:
    """One step over two seconds is a hundred steps over it."""
    once, often = overloaded(10.0), overloaded(10.0)
    safety.relax(once, 12.0, WINDOW_S)
    for k in range(1, 101):
        safety.relax(often, 10.0 + 0.02 * k, WINDOW_S)
    assert often.raised == pytest.approx(once.raised)
    assert often.ended == pytest.approx(once.ended)


def test_a_time_before_the_last_one_changes_nothing() -> None:
    """Ends that are reported out of order neither raise nor lower what has passed."""
    caution = overloaded(10.0)
    before = Caution(caution.raised, caution.ended, caution.missed, 10.0, 10.0)
    safety.relax(caution, 9.0, WINDOW_S)
    assert caution == before


def test_a_limit_at_rest_keeps_admission_from_learning() -> None:
    """With `pessimism` no higher than `optimism` the factor is a constant."""
    caution = Caution()
    for k in range(100):
        learn(caution, 0.01 * k, True, SafetyLimits(optimism=0.7, pessimism=0.7))
    assert safety.admission_factor(caution, 0.7) == 0.7
