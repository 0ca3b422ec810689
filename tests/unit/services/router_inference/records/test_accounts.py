"""Counts of how requests end, and what a scrape reads of them."""

from __future__ import annotations

import pytest
from prometheus_client import Counter

from router.dqn import snapshot
from router.guard import FallbackReason
from router.types import SloKind
from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.router_inference.job import Outcome
from services.router_inference.policy import slot
from services.router_inference.records import experience
from services.router_inference.records.accounts import TASK_ENDS, Counts, TokenEnds
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


def happened(rig: Rig, name: str) -> dict[tuple[str, ...], float]:
    """Returns those of them that are not 0."""
    return {labels: value for labels, value in scraped(rig, name).items() if value}


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
    assert happened(rig, "tiercel_requests_total") == {
        ("hard", "small", "on_time"): 1.0,
        ("hard", "none", "refused"): 1.0,
        ("hard", "small", "late"): 1.0,
    }
    assert scraped(rig, "tiercel_refused_requests_total") == {("DEADLINE_NOT_REACHABLE",): 1.0}
    assert scraped(rig, "tiercel_delivered_reward_total") == {("hard",): 0.5}
    assert scraped(rig, "tiercel_smooth_answers_total") == {("hard",): 1.0}
    assert scraped(rig, "tiercel_token_deadline_requests_total") == {}
    assert scraped(rig, "tiercel_decision_seconds_count") == {(): 2.0}
    assert rig.core.accounts.tier_counts["small"].offered == 2


@scenario
async def test_deadlines_for_tokens_are_counted_by_kind() -> None:
    """How they ended, and what answers count by their lateness: task, status and report agree."""
    rig = make_rig(policy="static-small")
    for _ in range(2):
        await rig.answer(rig.job(task="first", is_stream=True))
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(rig.job(task="first", is_stream=True, deadline_s=0.001))
    await rig.answer(rig.job())
    assert happened(rig, "tiercel_token_deadline_requests_total") == {
        ("first", "first_token", "on_time"): 2.0,
        ("first", "first_token", "refused"): 1.0,
    }
    smooth = scraped(rig, "tiercel_token_deadline_smooth_answers_total")
    assert smooth == {("first", "first_token"): 2.0}
    told = rig.core.status.read().token_ends
    assert told == {"first": [TokenEnds(SloKind.FIRST_TOKEN, 2, 1, 2.0)]}


@scenario
async def test_every_end_is_told_from_the_first_request_on() -> None:
    """A rate sees the first burst of misses, and a share of none in time is 0, not unknown."""
    rig = make_rig(policy="static-small")
    await rig.answer(rig.job(task="first", is_stream=True))
    ends = dict.fromkeys((end.value for end in TASK_ENDS), 0.0)
    served = {**ends, "on_time": 1.0}
    assert scraped(rig, "tiercel_requests_total") == {
        **{("first", "small", end): count for end, count in served.items()},
        **{("first", "none", end): count for end, count in ends.items()},
    }
    assert scraped(rig, "tiercel_priority_requests_total") == {
        ("normal", end): count for end, count in served.items()
    }
    assert scraped(rig, "tiercel_token_deadline_requests_total") == {
        ("first", "first_token", end): count for end, count in served.items()
    }


@scenario
async def test_what_alerts_wait_for_is_told_from_zero_on() -> None:
    """A count that is first seen as 1 has not risen, as Prometheus sees it."""
    metrics = make_rig().core.accounts.metrics
    reasons = {value for name, value in vars(snapshot).items() if name.startswith("REASON_")}
    reasons |= {slot.REASON_UNKNOWN, slot.REASON_NO_SNAPSHOT, slot.REASON_PARAMETERS}
    assert counted(metrics.refused_snapshots) == dict.fromkeys(reasons, 0.0)
    dropped = [each.value for each in experience.DropReason]
    assert counted(metrics.experience_dropped) == dict.fromkeys(dropped, 0.0)
    fallbacks = [each.value for each in FallbackReason]
    assert counted(metrics.fallbacks) == dict.fromkeys(fallbacks, 0.0)


def counted(counter: Counter) -> dict[str, float]:
    """Returns the values of a counter by reason."""
    (metric,) = counter.collect()
    return {s.labels["reason"]: s.value for s in metric.samples if s.name.endswith("_total")}
