"""The sequential test: its promises, measured on simulated requests with fixed seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.sequential import (
    Arms,
    Effect,
    Judgement,
    Plan,
    boundary,
    bounds_of,
    judge_pairs,
    smallest_shown,
)

PLAN = Plan(alpha=0.05, smallest=0.1, reach=2.0)
LOOK_EVERY = 20


def verdict(rng: np.random.Generator, effect: float, count: int, drift: float = 0.0) -> Judgement:
    """Returns how a test ends that is looked at all the time.

    Scores are hard rewards less a price: mostly a quality, sometimes nothing.
    """
    arms = Arms(-1.0, 1.0)
    on_trial = rng.random(count) < 0.5
    quality = rng.choice([0.72, 0.9, 1.0], count)
    level = drift * np.linspace(0.0, 1.0, count)
    value = np.where(rng.random(count) < 0.1, 0.0, quality) - 0.3 * rng.random(count) - level
    value = value + effect * on_trial
    for number, (drawn, each) in enumerate(zip(on_trial, value, strict=True), 1):
        arms.add(bool(drawn), float(each))
        if number % LOOK_EVERY == 0:
            found = PLAN.judge(arms.effect)
            if found is not Judgement.GO_ON:
                return found
    return Judgement.GO_ON


@pytest.mark.parametrize("drift", [0.0, 0.5])
def test_equal_policies_are_seldom_told_apart(drift: float) -> None:
    """Looked at after every few requests, at most alpha of the tests call either one better.

    In drifting traffic too, where what both earn falls by half a point meanwhile.
    """
    rng = np.random.default_rng(1)
    found = [verdict(rng, 0.0, 2_000, drift) for _ in range(200)]
    false = sum(each in (Judgement.BETTER, Judgement.WORSE) for each in found)
    assert false / len(found) <= PLAN.alpha


@pytest.mark.parametrize(("effect", "expected"), [(0.1, "better"), (-0.1, "worse")])
def test_the_smallest_effect_is_found(effect: float, expected: str) -> None:
    """An effect as large as was stated is never given up, and its sign is right."""
    rng = np.random.default_rng(2)
    found = [verdict(rng, effect, 20_000) for _ in range(20)]
    right = sum(each.value == expected for each in found)
    assert right / len(found) >= 1.0 - PLAN.alpha


def test_gives_up_where_there_is_nothing_to_find() -> None:
    """Equal policies end in "cannot tell", once a smaller effect is all there can be."""
    assert verdict(np.random.default_rng(3), 0.0, 40_000) is Judgement.CANNOT_TELL


def test_a_disaster_shows_at_once() -> None:
    """A policy that earns nothing where the other earns all is found in a few dozen requests."""
    arms, rng = Arms(0.0, 1.0), np.random.default_rng(4)
    plan = Plan(alpha=0.001, smallest=0.1, reach=1.0)
    while plan.judge(arms.effect) is Judgement.GO_ON:
        drawn = bool(rng.random() < 0.5)
        arms.add(drawn, 0.0 if drawn else 1.0)
    assert plan.judge(arms.effect) is Judgement.WORSE
    assert arms.effect.drawn <= 100


def test_bounds_hold_at_all_times_together() -> None:
    """In at most alpha of the runs the true effect is ever outside."""
    rng, alpha, outside = np.random.default_rng(5), 0.1, 0
    runs, count = 200, 1_000
    for _ in range(runs):
        arms, is_outside = Arms(0.0, 1.0), False
        for number in range(1, count + 1):
            drawn = bool(rng.random() < 0.5)
            arms.add(drawn, float(rng.random() < (0.8 if drawn else 0.7)))
            if number % LOOK_EVERY == 0:
                found = bounds_of(arms.effect, alpha, 1.0)
                is_outside |= not found.low <= 0.1 <= found.high
        outside += is_outside
    assert outside / runs <= alpha


def test_what_processes_saw_is_added_up() -> None:
    """The bounds of two halves together are narrower than those of each."""
    rng = np.random.default_rng(6)
    halves = [Arms(0.0, 1.0), Arms(0.0, 1.0)]
    for number in range(2_000):
        halves[number % 2].add(bool(rng.random() < 0.5), float(rng.random()))
    both = halves[0].effect.plus(halves[1].effect)
    assert both.drawn == 2_000.0

    def width(effect: Effect) -> float:
        found = bounds_of(effect, 0.05, 1.0)
        return found.high - found.low

    assert width(both) < min(width(half.effect) for half in halves)


def test_nothing_seen_says_nothing() -> None:
    """Before the first request any effect is possible."""
    assert bounds_of(Effect(), 0.05, 2.0) == (-2.0, 0.0, 2.0)
    assert PLAN.judge(Effect()) is Judgement.GO_ON


def test_sums_that_are_no_numbers_decide_nothing() -> None:
    """Whatever a report says, what is no number is no evidence."""
    for broken in (Effect(10.0, math.nan, 1.0), Effect(10.0, 9.0, math.nan)):
        assert PLAN.judge(broken) is Judgement.GO_ON


@settings(max_examples=60, deadline=None)
@given(
    square=st.floats(0.0, 1e6),
    alpha=st.floats(1e-6, 0.5),
    largest=st.floats(0.1, 10.0),
)
def test_boundary_grows_with_what_varies_and_with_certainty(
    square: float, alpha: float, largest: float
) -> None:
    """More variation or more certainty is a wider bound; it is never below the plain normal one."""
    found = boundary(square, alpha, largest)
    assert found <= boundary(2.0 * square + 1.0, alpha, largest) + 1e-9
    assert found <= boundary(square, 0.5 * alpha, largest) + 1e-9
    assert found >= math.sqrt(2.0 * square * -math.log(alpha)) - 1e-6


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.tuples(st.booleans(), st.floats(allow_nan=True)), max_size=50))
def test_any_value_is_taken(values: list[tuple[bool, float]]) -> None:
    """Values outside the range count as its ends, what is no number as the worst."""
    arms = Arms(-1.0, 1.0)
    for drawn, value in values:
        arms.add(drawn, value)
    assert arms.effect.drawn == len(values)
    assert abs(arms.effect.total) <= 4.0 * len(values)
    assert math.isfinite(arms.effect.square)


def test_pairs_of_equal_policies_are_seldom_told_apart() -> None:
    """Whatever differences are like, looked at after each: in alpha of the tests at most."""
    rng, wrong, alpha = np.random.default_rng(11), 0, 0.1
    for _ in range(600):
        size = np.minimum(1.0, np.abs(rng.standard_cauchy(24)) * rng.choice([0.001, 0.02, 0.3]))
        differences = np.where(rng.random(24) < 0.5, size, -size).tolist()
        found = {judge_pairs(differences[:count], alpha) for count in range(1, 25)}
        wrong += found != {Judgement.GO_ON}
    assert 0 < wrong <= 600 * alpha


@pytest.mark.parametrize("size", [0.0005, 0.02, 0.5])
def test_pairs_that_agree_show_an_effect_of_any_size(size: float) -> None:
    """Six to eight of them; one of twelve that does not agree leaves it as it is."""
    needed = next(
        count for count in range(1, 30) if judge_pairs([size] * count, 0.05) is Judgement.BETTER
    )
    assert 6 <= needed <= 8
    assert judge_pairs([-size] * needed, 0.05) is Judgement.WORSE
    assert judge_pairs([size] * 11 + [-0.1 * size], 0.05) is Judgement.BETTER
    assert judge_pairs([size, -size] * 12, 0.05) is Judgement.GO_ON
    assert judge_pairs([], 0.05) is Judgement.GO_ON


def test_what_pairs_would_show_is_about_what_they_do() -> None:
    """A mean twice as large is told in most draws, and one of half the size in few."""
    rng = np.random.default_rng(3)
    told = {0.5: 0, 2.0: 0}
    for factor in told:
        for _ in range(200):
            noise = rng.normal(0.0, 0.02, 40)
            shown = smallest_shown(noise.tolist(), 0.05)
            found = judge_pairs((noise + factor * shown).tolist(), 0.05)
            told[factor] += found is Judgement.BETTER
    assert told[2.0] > 150
    assert told[0.5] < 50
    assert smallest_shown([], 0.05) == math.inf
