"""Requests through the router: answers, refusals, and why a smaller tier answered."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import (
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.triton.errors import (
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
)
from services.router_inference.path.job import Outcome, StepDown
from tests.unit.services.router_inference.parts import Behaviour, make_rig
from tests.unit.services.router_inference.scenario import scenario

GONE = TierUnavailableError("UNAVAILABLE", "connection refused")
HANG = Behaviour(hang=True)


@scenario
async def test_an_answer_in_time_is_on_time() -> None:
    """Text, tier, quality and outcome of a plain request."""
    rig = make_rig()
    job = rig.job()
    sink = await rig.answer(job)
    assert sink.text == "ab"
    assert (job.outcome, job.tier, job.quality) == (Outcome.ON_TIME, "large", 1.0)
    assert job.finish_reason == "stop"
    assert job.step_down is StepDown.NONE
    assert rig.core.accounts.counts.delivered_reward_sum == 1.0
    rig.assert_settled()


@scenario
async def test_a_request_the_tier_refuses_is_not_retried() -> None:
    """Sending bad input elsewhere would not help; it is the client's to mend."""
    rig = make_rig()
    rig.tier().default = Behaviour(error=TierInvalidError("INVALID_REQUEST", "too long"))
    with pytest.raises(InvalidArgumentError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "TIER_REFUSED_REQUEST"
    assert len(rig.tier().calls) == 1
    assert rig.core.accounts.counts.failed == 1


@scenario
async def test_a_full_queue_is_no_fault_of_the_endpoint() -> None:
    """Overload is answered as such and ejects nobody."""
    rig = make_rig(max_retries=0, eject_after_failures=1)
    rig.tier().default = Behaviour(error=TierOverloadedError("QUEUE_FULL", "queue full"))
    with pytest.raises(UnavailableError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "TIER_OVERLOADED"
    rig.tier().default = Behaviour()
    await rig.answer(rig.job())


@scenario
async def test_a_full_router_refuses() -> None:
    """Memory is bounded: one request too many is refused at once."""
    rig = make_rig(max_in_flight=2)
    rig.tier().default = HANG
    tasks = [asyncio.ensure_future(rig.answer(rig.job())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "ROUTER_FULL"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    rig.assert_settled()


@scenario
async def test_step_downs_say_why() -> None:
    """Chosen by the policy, pinned by the client, or forced by what is there."""
    rig = make_rig(policy="static-small")
    chosen, pinned = rig.job(), rig.job(tier="medium")
    await rig.answer(chosen)
    await rig.answer(pinned)
    assert (chosen.step_down, pinned.step_down) == (StepDown.POLICY, StepDown.PINNED)
    rig = make_rig(eject_after_failures=1, max_retries=0)
    rig.tier().behaviours["large"] = Behaviour(error=GONE)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job())
    forced = rig.job()
    await rig.answer(forced)
    assert (forced.tier, forced.step_down) == ("medium", StepDown.UNAVAILABLE)
