"""Counts of how requests end, and what a scrape reads of them."""

from __future__ import annotations

import pytest

from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.router_inference.job import Outcome
from services.router_inference.records.accounts import Counts
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario


def scraped(rig: Rig, name: str) -> dict[tuple[str, ...], float]:
    """Returns the samples of a counter by their labels' values."""
    return {
        tuple(sample.labels.values()): sample.value
        for metric in rig.core.accounts.collect()
        for sample in metric.samples
        if sample.name == name
    }


def test_every_outcome_has_a_count_of_its_name() -> None:
    """Each end raises one count; all but bad input together are what has ended."""
    counts = Counts(offered=len(Outcome))
    for outcome in Outcome:
        counts.add(outcome, 0.5)
        assert getattr(counts, outcome.value) == 1
    assert counts.ended == counts.offered == len(Outcome) - 1
    assert counts.delivered_reward_sum == 0.5 * len(Outcome)


@scenario
async def test_a_scrape_tells_task_tier_and_end() -> None:
    """One answered, one cut off, one refused: the last under no tier, since none was chosen."""
    rig = make_rig(policy="static-small")
    await rig.answer(rig.job())
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(rig.job(deadline_s=0.001))
    rig.tier().default = Behaviour(hang=True)
    with pytest.raises(DeadlineExceededError):
        await rig.answer(rig.job())
    assert scraped(rig, "tiercel_requests_total") == {
        ("hard", "small", "on_time"): 1.0,
        ("hard", "none", "refused"): 1.0,
        ("hard", "small", "late"): 1.0,
    }
    assert scraped(rig, "tiercel_refused_requests_total") == {("DEADLINE_NOT_REACHABLE",): 1.0}
    assert scraped(rig, "tiercel_delivered_reward_total") == {("hard",): 0.5}
    assert scraped(rig, "tiercel_smooth_answers_total") == {("hard",): 1.0}
    assert scraped(rig, "tiercel_decision_seconds_count") == {(): 2.0}
    assert rig.core.accounts.tier_counts["small"].offered == 2
