"""Rescues and retries: where a request goes next, and when it goes nowhere."""

from __future__ import annotations

import asyncio
import random

import pytest

from router.profile import LatencyProfile, TierProfile
from services.common.errors import (
    DeadlineExceededError,
    UnavailableError,
)
from services.common.tiers.errors import (
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.router_inference.job import Outcome, StepDown
from services.router_inference.path.second_chance import RetryBudget
from services.router_inference.view.breaker import Breaker
from tests.unit.services.router_inference.parts import TIERS, Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

GONE = TierUnavailableError("UNAVAILABLE", "connection refused")
HANG = Behaviour(hang=True)


@scenario
async def test_a_stuck_request_is_rescued() -> None:
    """Just before it is too late the request goes to the best smaller tier that makes it."""
    rig = make_rig()
    rig.tier().behaviours["large"] = HANG
    for number in range(40):  # a queue at the large tier makes the miss predictable
        rig.core.view.load.ledger.dispatch(number, ("large", "e0"), 1.0, 40.0)
    job = rig.job()
    sink = await rig.answer(job)
    for number in range(40):
        rig.core.view.load.ledger.finish(number)
    assert (job.outcome, job.is_rescued, job.step_down) == (
        Outcome.ON_TIME, True, StepDown.RESCUE,
    )  # fmt: skip
    assert sink.text == "ab"
    assert [call["end"] for call in rig.tier().calls] == ["cancelled", "done"]
    assert job.tier != "large"
    outcome = (await rig.records())[-1].outcome
    assert outcome.rescued
    assert (outcome.reward, outcome.delivered_reward) == (0.0, job.quality)
    rig.assert_settled()


@scenario
async def test_without_the_safety_net_nothing_is_rescued() -> None:
    """Switched off, the same request misses."""
    rig = make_rig(safety_net=False)
    rig.tier().behaviours["large"] = HANG
    with pytest.raises(DeadlineExceededError):
        await rig.answer(rig.job())
    assert len(rig.tier().calls) == 1


@scenario
async def test_a_safety_net_that_is_switched_off_rescues_nothing_under_way() -> None:
    """Settings may change between a dispatch and the moment its rescue is due."""
    rig, complaints = make_rig(), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, facts: complaints.append(facts))
    rig.tier().behaviours["large"] = HANG
    job = rig.job()
    answering = asyncio.ensure_future(rig.answer(job))
    await asyncio.sleep(0.01)
    rig.core.second_chance.configure(None, RetryBudget(0.1, 16), 2)
    with pytest.raises(DeadlineExceededError):
        await answering
    assert (complaints, job.is_rescued) == ([], False)
    rig.assert_settled()


@scenario
async def test_a_pinned_request_is_never_rescued() -> None:
    """A client that pinned a tier gets that tier or nothing."""
    rig = make_rig()
    rig.tier().behaviours["large"] = HANG
    job = rig.job(tier="large")
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert [call["model"] for call in rig.tier().calls] == ["large"]


@scenario
async def test_a_failed_request_goes_to_another_endpoint_of_its_tier() -> None:
    """The retry keeps the tier if another endpoint has it."""
    rig = make_rig(endpoint_count=2)
    for index in range(2):
        rig.tier(index).behaviours["large"] = Behaviour(error=GONE)
    first = rig.job()

    # Whichever endpoint is chosen first fails; the other one answers.
    async def heal_the_other() -> None:
        while not any(rig.tier(i).calls for i in range(2)):
            await asyncio.sleep(0)
        for index in range(2):
            if not rig.tier(index).calls:
                rig.tier(index).behaviours.clear()

    healer = asyncio.ensure_future(heal_the_other())
    for index in range(2):
        rig.tier(index).behaviours["large"] = Behaviour(
            pieces=("x",), step_s=0.001, error=GONE, error_after=1
        )
    sink = await rig.answer(first)
    await healer
    assert (first.outcome, first.tier, first.retry_count) == (Outcome.ON_TIME, "large", 1)
    assert sink.text == "ab"  # nothing of the broken answer is left
    assert sink.restarts == 1
    rig.assert_settled()


@scenario
async def test_a_failed_request_goes_down_where_its_tier_has_no_other_endpoint() -> None:
    """One endpoint only: the retry takes the tier below, and says why."""
    rig = make_rig()
    rig.tier().behaviours["large"] = Behaviour(error=GONE)
    job = rig.job()
    await rig.answer(job)
    assert (job.tier, job.step_down, job.retry_count) == ("medium", StepDown.RETRY, 1)


@scenario
async def test_alternatives_are_put_in_order_as_retries_are() -> None:
    """Other servers, then the same tier, the ones below, the ones above; the sooner one before."""
    rig = make_rig(endpoint_count=3)
    chance, fleet, dice = rig.core.second_chance, rig.core.view.fleet, random.Random(5)
    for number in range(40):
        rig.core.view.load.ledger.dispatch(number, dice.choice(fleet.candidates), 5.0, 20.0)
    job = rig.job(deadline_s=10.0)
    for target in fleet.targets:
        among = {*fleet.candidates} - {target.candidate}
        found = chance.alternatives(job, target, among)
        assert {each.candidate for each in found} == among
        assert [each.address == target.address for each in found] == [False] * 6 + [True] * 2
        at = target.tier_index
        tiers = [at, *range(at - 1, -1, -1), *range(at + 1, 3)]
        assert [each.tier_index for each in found[:6]] == [tier for tier in tiers for _ in range(2)]
        failed, broken = frozenset({target.candidate}), frozenset({target.address})
        assert chance.retry_target(job, target, failed, broken) is found[0]
        assert chance.alternatives(job, target, [found[4].candidate, found[1].candidate]) == [
            found[1],
            found[4],
        ]


@pytest.mark.parametrize(("task", "tier"), [("hard", "medium"), ("soft", "large")])
def test_a_retry_goes_where_it_will_be_in_time(task: str, tier: str) -> None:
    """Its own tier elsewhere would miss; where late is better than worse that is no matter."""

    @scenario
    async def scene() -> None:
        steps = {"small": 0.004, "medium": 0.015, "large": 0.04}
        costs = {
            name: TierProfile(step_s, 0.0, 0.0, max_batch=64) for name, step_s in steps.items()
        }
        rig = make_rig(endpoint_count=2, profile=LatencyProfile("slow", "assumed", costs))
        for index in range(2):  # nothing for half of the deadline, then a connection that is lost
            rig.tier(index).behaviours["large"] = Behaviour(
                pieces=("",), step_s=0.2, tokens_per_piece=0, error=GONE, error_after=1
            )
        job = rig.job(task=task)
        answering = asyncio.ensure_future(rig.answer(job))
        await asyncio.sleep(0.01)
        for index in range(2):
            if not rig.tier(index).calls:
                rig.tier(index).behaviours.clear()
        await answering
        assert (job.tier, job.retry_count) == (tier, 1)
        rig.assert_settled()

    scene()


@scenario
async def test_retries_are_budgeted() -> None:
    """With the budget gone a failure is a failure at once."""
    rig = make_rig(retry_share=0.0, retry_burst=1, eject_after_failures=1000)
    rig.tier().default = Behaviour(error=GONE)
    for expected_calls in (2, 1, 1):
        rig.tier().calls.clear()
        with pytest.raises(UnavailableError) as caught:
            await rig.answer(rig.job())
        assert caught.value.reason == "ENDPOINT_FAILED"
        assert len(rig.tier().calls) == expected_calls
    assert rig.core.accounts.counts.failed == 3
    rig.assert_settled()


@scenario
async def test_a_stream_that_has_begun_is_not_retried() -> None:
    """What the client has seen cannot be taken back."""
    rig = make_rig()
    rig.tier().default = Behaviour(error=GONE, error_after=1)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job(is_stream=True))
    assert len(rig.tier().calls) == 1


def test_the_retry_budget_is_a_share_of_requests() -> None:
    """A burst, then one retry per so many requests."""
    budget = RetryBudget(0.1, 2)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.on_request()
    assert [budget.take() for _ in range(2)] == [True, False]


@scenario
async def test_requests_that_may_be_at_fault_leave_retries_to_others() -> None:
    """However many fail in words unknown, the next that meets a dead endpoint is sent elsewhere."""
    rig = make_rig(endpoint_count=2, retry_share=0.0, retry_burst=8)
    unknown = TierUnknownError("TIER_FAILED", "no")
    for index in range(2):
        rig.tier(index).default = Behaviour(error=unknown)
    for _ in range(40):
        with pytest.raises(UnavailableError):
            await rig.answer(rig.job())
    for index in range(2):
        rig.tier(index).default = Behaviour()
    rig.tier(0).behaviours["large"] = Behaviour(error=GONE)
    rig.tier(1).behaviours["large"] = Behaviour(error=GONE)
    job = rig.job()
    await rig.answer(job)
    assert (job.outcome, job.retry_count) == (Outcome.ON_TIME, 2)


@scenario
async def test_an_endpoint_that_breaks_off_what_it_begins_is_ejected() -> None:
    """Tokens it has sent before are no excuse; requests are retried elsewhere meanwhile."""
    rig = make_rig(endpoint_count=2, eject_after_failures=3)
    rig.tier(0).default = Behaviour(error=GONE, error_after=1)
    for _ in range(20):
        await rig.answer(rig.job())
    assert len(rig.tier(0).calls) <= 5


def breakers(rig: Rig, endpoint: str) -> list[Breaker]:
    """Returns the breakers of an endpoint's tiers."""
    return [each.breaker for each in rig.core.view.fleet.targets if each.endpoint == endpoint]


@scenario
async def test_an_endpoint_that_comes_back_is_tried_before_a_broken_one_again() -> None:
    """A request that met a broken endpoint takes whatever is open elsewhere, if only a probe."""
    retried = 0
    for seed in range(1, 11):
        rig = make_rig(endpoint_count=2, eject_after_failures=1, eject_s=0.1, seed=seed)
        for breaker in breakers(rig, "e1"):
            breaker.on_failure(rig.clock.monotonic_s(), "UNAVAILABLE")
        await asyncio.sleep(0.2)  # from now on each may have a probe, a tenth of the requests
        rig.tier(0).default = Behaviour(error=GONE)
        job = rig.job()
        await rig.answer(job)
        assert (job.outcome, job.endpoint, job.tier) == (Outcome.ON_TIME, "e1", "large")
        retried += job.retry_count
        rig.assert_settled()
    assert retried > 5


@scenario
async def test_two_endpoints_of_one_server_fail_together() -> None:
    """The retry of a broken server's request does not go there under another name."""
    address = "127.0.0.1:9000"
    entries = [
        {"name": "e0", "address": address, "tiers": TIERS},
        {"name": "added", "address": address, "tiers": ("large",)},
        {"name": "far", "address": "127.0.0.1:9001", "tiers": TIERS},
    ]
    rig = make_rig(mesh={"endpoints": entries}, max_retries=1)
    for _ in range(6):
        rig.tier(0).default = Behaviour(error=GONE)
        # What is slower by prediction is still another server.
        rig.core.view.load.ledger.dispatch(0, ("large", "far"), 1.0, 40.0)
        job = rig.job()
        await rig.answer(job)
        rig.core.view.load.ledger.finish(0)
        assert (job.outcome, job.endpoint, job.retry_count) == (Outcome.ON_TIME, "far", 1)
        for breaker in (*breakers(rig, "e0"), *breakers(rig, "added")):
            breaker.on_answer(rig.clock.monotonic_s())


@scenario
async def test_a_full_queue_says_nothing_of_the_server() -> None:
    """Its other tiers are as good as any elsewhere; those of a broken one come last."""
    entries = [
        {"name": "e0", "address": "127.0.0.1:9000", "tiers": ("medium", "large")},
        {"name": "e1", "address": "127.0.0.1:9001", "tiers": ("small",)},
    ]
    full = TierOverloadedError("QUEUE_FULL", "queue is full: 9 requests wait")
    for error, tier in ((full, "medium"), (GONE, "small")):
        rig = make_rig(mesh={"endpoints": entries})
        rig.tier(0).behaviours["large"] = Behaviour(error=error)
        job = rig.job()
        await rig.answer(job)
        assert (job.outcome, job.tier) == (Outcome.ON_TIME, tier)
