"""Costs from requests that nobody kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from router.profile import LatencyProfile, TierProfile
from tests.unit.trainer.profiling.served_device import COSTS, served
from trainer.profiling.latency_fit import FitError
from trainer.profiling.served_fit import (
    FEWEST_BATCHED,
    FEWEST_DECODES,
    FEWEST_FIRSTS,
    Served,
    fit_served,
    lacks,
    misfits_of,
    stretches,
)

TIERS = ("small", "large")
# What is believed is wrong by half; only its limits may come back.
BELIEVED = LatencyProfile("p", "measured", {tier: cost.scaled(1.5) for tier, cost in COSTS.items()})
KEYS = ("step_s", "per_sequence_s", "per_prompt_token_s", "overhead_s")


def off(found: Sequence[Served], tiers: Sequence[str] = TIERS) -> dict[tuple[str, str], float]:
    """How far each cost that is found is from the truth, as a ratio less one."""
    fits = fit_served(stretches(found, tiers), tiers, {}, BELIEVED)
    return {
        (tier, key): getattr(fits[tier].profile, key) / getattr(COSTS[tier], key) - 1.0
        for tier in tiers
        for key in KEYS
    }


def predicted_off(found: Sequence[Served]) -> float:
    """How far what is found is off at most, for requests of the kind alone and in batches."""
    fits = fit_served(stretches(found, TIERS), TIERS, {}, BELIEVED)
    worst = 0.0
    for tier in TIERS:
        for batch, prompts, tokens in ((1, 100, 10), (1, 800, 4), (4, 400, 10), (8, 200, 16)):
            times = [
                cost.overhead_s + cost.per_prompt_token_s * prompts
                + tokens * (cost.step_s + cost.per_sequence_s * batch)
                for cost in (fits[tier].profile, COSTS[tier])
            ]  # fmt: skip
            worst = max(worst, abs(times[0] / times[1] - 1.0))
    return worst


@pytest.mark.parametrize("rate_rps", [4.0, 10.0])
def test_costs_come_back_from_traffic_on_shared_devices(rate_rps: float) -> None:
    """Two tiers that take turns, batches and prompts as they come, two devices."""
    found = served(COSTS, rate_rps, 1_500) + served(COSTS, rate_rps, 1_500, seed=1, device="e")
    assert predicted_off(found) < 0.1
    steps = {tier: cost for (tier, key), cost in off(found).items() if key != "overhead_s"}
    assert max(map(abs, steps.values())) < 0.3


def test_tokens_that_are_seen_late_do_little() -> None:
    """By up to two milliseconds, which is most of a small iteration."""
    found = served(COSTS, 8.0, 3_000, jitter_s=0.002)
    assert predicted_off(found) < 0.1


def test_what_is_off_is_named_by_tier_and_range() -> None:
    """The truth is nowhere off; half as much again is, everywhere."""
    found = stretches(served(COSTS, 8.0, 3_000), TIERS)
    right = misfits_of(found, COSTS, TIERS)
    assert set(right) == set(TIERS)
    assert max(abs(each) for kinds in right.values() for each in kinds.values()) < 0.06
    wrong = misfits_of(found, BELIEVED.tiers, TIERS)
    assert min(each for kinds in wrong.values() for each in kinds.values()) > 0.2
    kinds = set(right["large"])
    assert any(kind.startswith("idle device, prompts of ") for kind in kinds)
    assert any(kind.startswith("decoding, batches of ") for kind in kinds)
    prompts_dearer = {
        t: replace(c, per_prompt_token_s=3 * c.per_prompt_token_s) for t, c in COSTS.items()
    }
    longest = max(
        misfits_of(found, prompts_dearer, TIERS)["large"].items(), key=lambda item: item[1]
    )
    assert longest[0].startswith("idle device, prompts of ")


def test_what_ran_beside_the_unknown_is_left_out() -> None:
    """One request of which nobody knows when it ran takes all it touches with it."""
    found = served(COSTS, 8.0, 400)
    whole = len(stretches(found, TIERS))
    end_s = max(each.end_s for each in found)
    hidden = Served("large", "d", 1.0, 0, 0.0, np.inf, end_s / 2, False, False)
    left = stretches([*found, hidden], TIERS)
    assert 0.3 * whole < len(left) < 0.7 * whole
    assert stretches([*found, replace(hidden, end_s=end_s)], TIERS) == []
    elsewhere = replace(hidden, device="e", end_s=end_s)
    assert len(stretches([*found, elsewhere], TIERS)) == whole


def test_what_is_missing_is_counted() -> None:
    """By tier: answers on an idle device, decoding, company; nothing is missing of enough."""
    assert lacks(stretches(served(COSTS, 8.0, 2_000), TIERS), BELIEVED, TIERS) == []
    few = lacks(stretches(served({"small": COSTS["small"]}, 0.001, 15), TIERS), BELIEVED, TIERS)
    assert [(each.tier, each.found, each.needed) for each in few] == [
        ("small", 15, FEWEST_FIRSTS),
        ("small", 15, FEWEST_DECODES),
        ("small", 0, FEWEST_BATCHED),
        ("large", 0, FEWEST_FIRSTS),
        ("large", 0, FEWEST_DECODES),
        ("large", 0, FEWEST_BATCHED),
    ]
    assert str(few[0]) == ("small: 15 answers that found their device idle, 20 are needed: 5 more")


def test_a_tier_that_is_kept_is_accounted_for() -> None:
    """Its costs are taken as known, and the others' come back as if it were fitted too."""
    found = stretches(served(COSTS, 8.0, 3_000), TIERS)
    (fit,) = fit_served(found, TIERS, {"small": COSTS["small"]}, BELIEVED).values()
    assert fit.profile.step_s == pytest.approx(COSTS["large"].step_s, rel=0.15)
    assert fit.profile.max_batch == BELIEVED.tiers["large"].max_batch
    with pytest.raises(FitError):
        fit_served(found, TIERS, COSTS, BELIEVED)


def test_one_device_of_tiers_that_never_meet_needs_no_company() -> None:
    """A tier that runs one at a time asks for no batches."""
    single = {"small": TierProfile(0.003, 0.0, 2e-5, max_batch=1, overhead_s=0.002)}
    profile = LatencyProfile("p", "measured", single)
    found = stretches(served(single, 5.0, 300), ("small",))
    assert lacks(found, profile, ("small",)) == []
    fit = fit_served(found, ("small",), {}, profile)["small"]
    assert fit.profile.token_s == pytest.approx(0.003, rel=0.05)
