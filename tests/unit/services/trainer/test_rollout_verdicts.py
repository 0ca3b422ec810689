"""Verdicts of both stages, as tables."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from router.sequential import Arms, Plan
from services.trainer.rollout_verdicts import (
    CanarySeen,
    ShadowLimits,
    ShadowSeen,
    Verdict,
    judge_canary,
    judge_shadow,
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
