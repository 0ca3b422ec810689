"""What feedback says of tiers reaches decisions; what was decided before stays explained."""

from __future__ import annotations

import asyncio

import pytest

from router.explanation import Explainer
from services.common.errors import NotFoundError
from services.router_inference.job import Job, Outcome
from services.router_inference.path.leases import Report
from services.router_inference.view.quality import EVERY_S
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario


async def rated(rig: Rig, count: int, score: float, tier: str = "small") -> Job:
    """Has so many requests answered by a tier and rates each; returns the last one."""
    for number in range(count):
        job = rig.job(request_id=f"{tier}-{number}", tier=tier)
        await rig.answer(job)
        rig.core.leases.feedback("", job.request_id, score)
    return job


def in_use(rig: Rig, tier: str = "small") -> float:
    """Returns the quality of a tier on task hard that decisions use."""
    fleet = rig.core.view.fleet.latest
    return float(fleet.arrays.quality_KC[0, fleet.row[tier, "e0"]])


@scenario
async def test_decisions_use_the_next_table() -> None:
    """Not each report by itself; answers earn by it too."""
    rig = make_rig(learn_quality=True)
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    assert in_use(rig) == before
    working = asyncio.create_task(rig.core.quality.run())
    await asyncio.sleep(1.5 * EVERY_S)
    working.cancel()
    [found] = rig.core.status.read().qualities
    assert before - 0.2 <= in_use(rig) < before - 0.1
    assert (found.task, found.tier, found.reports) == ("hard", "small", 40)
    assert (found.quality, found.settings_quality) == (in_use(rig), before)
    assert 0.0 < found.error < 0.3
    job = rig.job(tier="small")
    await rig.answer(job)
    assert job.quality == in_use(rig)
    assert rig.core.status.read().quality_version == 1


@scenario
async def test_a_decision_is_explained_by_the_table_it_was_taken_by() -> None:
    """To the last bit, whatever has been learned since."""
    rig = make_rig(policy="price", learn_quality=True)
    job = await rated(rig, 30, 0.1)
    inputs, explainer = choice_of(job).inputs, Explainer()
    before = explainer.explain(inputs).score_C.copy()
    rig.core.quality.put()
    later = rig.job(tier="small")
    await rig.answer(later)
    assert (explainer.explain(choice_of(later).inputs).score_C != before).any()
    assert (explainer.explain(inputs).score_C == before).all()
    fleet = inputs.fleet.arrays
    assert fleet.quality_KC is not choice_of(later).inputs.fleet.arrays.quality_KC


@scenario
async def test_a_closed_ticket_rates_once() -> None:
    """Feedback for the same answer changes its record, and teaches nothing more."""
    rig = make_rig(learn_quality=True)
    routed = rig.core.leases.route(rig.job(request_id="mine", prompt=None, prompt_tokens=5))
    rig.core.leases.close(routed.ticket, Report(Outcome.ON_TIME, None, 3, 0.5))
    rig.core.leases.feedback("", "mine", 0.4)
    assert [each.reports for each in rig.core.quality.read()] == [1]


@scenario
async def test_what_is_not_the_callers_teaches_nothing() -> None:
    """Neither does a second report on one answer."""
    rig = make_rig(learn_quality=True)
    await rig.answer(rig.job(request_id="mine", client="1.1.1.1"))
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("2.2.2.2", "mine", 0.0)
    assert rig.core.quality.read() == []
    rig.core.leases.feedback("1.1.1.1", "mine", 0.5)
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("1.1.1.1", "mine", 0.0)
    assert [each.reports for each in rig.core.quality.read()] == [1]


@scenario
async def test_it_is_off_by_default() -> None:
    """Reports go into records alone."""
    rig = make_rig()
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    rig.core.quality.put()
    assert in_use(rig) == before
    assert rig.core.status.read().qualities == []


@scenario
async def test_switching_it_off_brings_the_table_of_the_settings_back() -> None:
    """And what was learned is forgotten."""
    rig = make_rig(learn_quality=True)
    before = in_use(rig)
    await rated(rig, 40, 0.0)
    rig.core.quality.put()
    assert in_use(rig) < before
    catalog = rig.app._files.catalog
    for is_on in (True, False):
        learned = rig.core.quality.configure(catalog, is_on=is_on)
        assert (learned.quality_KT == catalog.quality_KT).all() != is_on
    assert rig.core.quality.read() == []
