"""Requests through the router: answers, refusals, and why a smaller tier answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import pytest

from services.common.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.tiers.errors import (
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.router_inference.job import Outcome, StepDown
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import Behaviour, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2

UNKNOWN = TierUnknownError("TIER_FAILED", "ValueError: timeout expired")
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
    counts = rig.core.accounts.counts
    assert (counts.offered, counts.failed, counts.invalid) == (0, 0, 1)
    assert "small" not in rig.core.accounts.tier_counts
    assert (await rig.records())[-1].outcome.status == common_pb2.OUTCOME_STATUS_INVALID
    rig.assert_settled()


@pytest.mark.parametrize("endpoint_count", [1, 2])
@pytest.mark.parametrize("refusing", [("small", "medium", "large"), ("large",)])
def test_no_words_of_a_refusal_close_a_tier(endpoint_count: int, refusing: Sequence[str]) -> None:
    """A request that tiers refuse in words unknown, sent again and again, harms nobody else."""

    async def run() -> None:
        rig = make_rig(endpoint_count=endpoint_count, eject_after_failures=1, retry_burst=1_000)
        for _ in range(50):
            for index in range(endpoint_count):
                for tier in refusing:
                    rig.tier(index).behaviours[tier] = Behaviour(error=UNKNOWN)
            with suppress(UnavailableError):
                await rig.answer(rig.job())
            for index in range(endpoint_count):
                rig.tier(index).behaviours.clear()
            # Somebody else, with a request that only this tier can answer.
            await rig.answer(rig.job(tier="large"))
        ejected = any(family.samples for family in rig.core.accounts.metrics.ejections.collect())
        # With one endpoint and an answer of another tier, the tier is doubted, not closed.
        assert ejected is (endpoint_count == 1 and refusing == ("large",))

    run_virtual(run())


@scenario
async def test_an_error_unknown_counts_where_another_endpoint_answers() -> None:
    """The same request, the same tier, an answer elsewhere: then the endpoint is at fault."""
    rig = make_rig(endpoint_count=2, eject_after_failures=3, retry_burst=1_000)
    rig.tier(0).default = Behaviour(error=UNKNOWN)
    for _ in range(20):
        await rig.answer(rig.job())
    calls = len(rig.tier(0).calls)
    assert calls < 10
    assert rig.core.view.fleet.current(rig.clock.monotonic_s()).arrays.availability_C[2] == 0.0


@scenario
async def test_what_fails_twice_in_words_unknown_is_not_sent_on() -> None:
    """A request that breaks tiers meets two of them, not all."""
    rig = make_rig(endpoint_count=3)
    for index in range(3):
        rig.tier(index).default = Behaviour(error=UNKNOWN)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job())
    assert sum(len(rig.tier(index).calls) for index in range(3)) == 2


@scenario
async def test_a_bad_answer_is_the_endpoints_fault() -> None:
    """It is retried elsewhere, and ejects."""
    rig = make_rig(endpoint_count=2, eject_after_failures=1)
    bad = TierUnavailableError("BAD_ANSWER", "the endpoint sent a token count of 100000 bytes")
    rig.tier(0).default = Behaviour(error=bad)
    for _ in range(10):
        await rig.answer(rig.job())
    assert len(rig.tier(0).calls) <= 3


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
async def test_one_that_has_room_for_nobody_does_not_draw_all_requests() -> None:
    """It refuses at once, so nothing is under way there, and it looks the better of the two."""
    rig = make_rig(endpoint_count=2, policy="price")
    full = TierOverloadedError("RESOURCE_EXHAUSTED", "status 429")
    rig.tier(0).default = Behaviour(error=full, step_s=0.0)
    tasks = []
    for _ in range(1_000):
        tasks.append(asyncio.create_task(rig.answer(rig.job())))
        await asyncio.sleep(0.01)
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert not [end for end in ends[500:] if isinstance(end, Exception)]
    assert len(rig.tier(0).calls) < 500
    candidates = rig.core.view.fleet.targets
    assert {each.breaker.last_reason for each in candidates if each.endpoint == "e1"} == {""}


@pytest.mark.parametrize("safety_net", [True, False])
def test_what_waited_past_its_deadline_is_not_on_time(safety_net: bool) -> None:
    """Seen here half a second after it was sent, with a deadline of less: never an answer."""

    async def run() -> None:
        rig = make_rig(safety_net=safety_net)
        error = ResourceExhaustedError if safety_net else DeadlineExceededError
        with pytest.raises(error):
            await rig.answer(rig.job(deadline_s=0.4, call_left_s=0.15, waited_s=0.5))
        assert rig.core.accounts.counts.on_time == 0
        assert not safety_net or not rig.tier().calls
        rig.assert_settled()

    run_virtual(run())


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
