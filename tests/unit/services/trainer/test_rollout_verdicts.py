"""Verdicts of both stages, as tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router.sequential import Arms, Plan
from services.trainer.rollout_verdicts import (
    CanarySeen,
    PeriodSeen,
    ShadowLimits,
    ShadowSeen,
    SwitchPlan,
    Verdict,
    decides_all,
    judge_canary,
    judge_shadow,
    judge_switchback,
    pair_difference,
    total,
)

LIMITS = ShadowLimits(decisions=200, decision_s=0.002, value_loss=0.1)
PLAN = Plan(alpha=0.05, smallest=0.1, reach=2.0)
GOOD = ShadowSeen(
    decision_count=200.0,
    same_candidate_count=100.0,
    same_tier_count=150.0,
    top_candidate_count=60.0,
    active_top_candidate_count=60.0,
    top_tier_count=90.0,
    active_top_tier_count=90.0,
    decision_s=0.005,
    active_decision_s=0.005,
    value_gain=-1.0,
)


@pytest.mark.parametrize(
    ("change", "verdict", "text"),
    [
        ({}, Verdict.BETTER, "safe"),
        ({"decision_count": 199.0}, None, ""),
        ({"decision_count": 5.0, "fault_count": 1.0}, Verdict.WORSE, "failed in 1"),
        ({"decision_s": 2.0}, Verdict.WORSE, "0.010000 s"),
        # In plain Python the active policy takes as long.
        ({"decision_s": 2.0, "active_decision_s": 1.0}, Verdict.BETTER, "safe"),
        ({"decision_s": math.nan}, Verdict.WORSE, "takes"),
        ({"top_tier_count": 200.0}, Verdict.WORSE, "always takes the same tier"),
        # In calm the best policies take the largest tier always.
        ({"top_tier_count": 200.0, "active_top_tier_count": 190.0}, Verdict.BETTER, "safe"),
        ({"top_candidate_count": 200.0}, Verdict.WORSE, "same candidate"),
        ({"value_gain": -30.0}, Verdict.WORSE, "worth 0.150 less"),
        ({"value_gain": math.nan}, Verdict.WORSE, "worth"),
    ],
)
def test_shadow(change: dict[str, float], verdict: Verdict | None, text: str) -> None:
    """What is not safe to ask goes no further; the reason names value and limit."""
    found = judge_shadow(replace(GOOD, **change), LIMITS)
    assert (found.verdict if found else None) is verdict
    assert text in (found.text if found else "")


def canary(effect: float, count: int) -> CanarySeen:
    """Returns a canary whose values differ by an effect."""
    arms, rng = Arms(-1.0, 1.0), np.random.default_rng(1)
    for drawn, value in zip(rng.random(count) < 0.5, rng.uniform(0.5, 0.7, count), strict=True):
        arms.add(bool(drawn), float(value + effect * drawn))
    sums = arms.effect
    return CanarySeen(
        request_count=count / 2,
        control_count=count / 2,
        effect_count=sums.drawn,
        effect_total=sums.total,
        effect_square=sums.square,
    )


@pytest.mark.parametrize(
    ("effect", "count", "verdict", "text"),
    [
        (0.3, 2_000, Verdict.BETTER, "it earns more: difference +0."),
        (-0.3, 2_000, Verdict.WORSE, "it earns less: difference -0."),
        (0.0, 20_000, Verdict.CANNOT_TELL, "no difference of 0.1 or more"),
        (0.0, 100, None, ""),
    ],
)
def test_canary(effect: float, count: int, verdict: Verdict | None, text: str) -> None:
    """Three kinds, and none before there is enough."""
    found = judge_canary(canary(effect, count), PLAN)
    assert (found.verdict if found else None) is verdict
    assert text in (found.text if found else "")


def test_what_routers_saw_is_added_up() -> None:
    """Field by field."""
    both = total(CanarySeen, [canary(0.0, 8), canary(0.1, 4)])
    assert (both.request_count, both.effect_count) == (6.0, 12.0)
    assert total(ShadowSeen, []) == ShadowSeen()


def test_of_two_periods_each_policy_has_one_and_a_coin_says_which_comes_first() -> None:
    """The same for whoever asks, and another one for another rollout."""
    first = [decides_all(7, "v", 2 * pair + 1) for pair in range(400)]
    assert all(decides_all(7, "v", 2 * p + 2) is not one for p, one in enumerate(first))
    assert 150 < sum(first) < 250
    assert first == [decides_all(7, "v", 2 * pair + 1) for pair in range(400)]
    assert first != [decides_all(8, "v", 2 * pair + 1) for pair in range(400)]


def test_a_pair_of_periods_is_one_number() -> None:
    """What a request earned more; none where there were too few to say."""
    one, other = PeriodSeen(100.0, 5.0, 90.0), PeriodSeen(50.0, 1.0, 40.0)
    assert pair_difference(one, other) == pytest.approx(0.1)
    assert pair_difference(PeriodSeen(9.0, 0.0, 9.0), other) is None
    assert pair_difference(one, PeriodSeen()) is None
    assert pair_difference(PeriodSeen(10.0, 0.0, 1e6), other) == 1.0
    assert pair_difference(other, PeriodSeen(10.0, 0.0, 1e6)) == -1.0


SWITCH = SwitchPlan(pairs=12, period_s=30.0, alpha=0.05)


@pytest.mark.parametrize(
    ("differences", "verdict", "text"),
    [
        ([], None, ""),
        ([0.02] * 5, None, ""),
        ([0.02] * 11, Verdict.BETTER, "it earns more"),
        ([-0.02] * 11, Verdict.WORSE, "it earns less"),
        ([0.02, -0.01] * 6, Verdict.BETTER, "it earns no less"),
        ([0.01, -0.02] * 6, Verdict.CANNOT_TELL, "it may earn less"),
    ],
)
def test_what_a_switchback_shows(
    differences: list[float], verdict: Verdict | None, text: str
) -> None:
    """Large effects alone; what shows none goes on unless it earned less on the mean."""
    found = judge_switchback(differences, SWITCH)
    assert (found and found.verdict) == verdict
    if found is not None:
        assert found.text.startswith(text)
        assert "would show with probability 0.95" in found.text
