"""Exchanges: what a gateway tells of a request, and what the router makes of it."""

from __future__ import annotations

import asyncio

import pytest

from services.router_inference.job import Outcome, StepDown
from services.router_inference.path.exchanges import (
    GRACE_S,
    REASON_CUT,
    Exchange,
    Exchanges,
)
from services.router_inference.path.first_token import first_token_s
from services.router_inference.view.breaker import BreakerState
from tests.unit.services.router_inference.parts import Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario


def begun(
    rig: Rig, *, with_others: bool = True, is_told: bool = True, **fields: object
) -> Exchange:
    """Begins an exchange; every other endpoint of the tier could take it.

    Args:
        rig: a router.
        with_others: False if none could.
        is_told: False if an answer's beginning is told with its end alone.
        fields: of the request.
    """
    job = rig.job(prompt=None, prompt_tokens=9, by_gateway=True, is_stream=True, **fields)
    exchanges = Exchanges(parts=rig.core.dispatcher._parts, leases=rig.core.leases)
    exchanges.are_beginnings_told = is_told
    names = rig.core.view.fleet.candidates if with_others else ()
    return exchanges.begin(job, lambda chosen: [c for c in names if c != chosen.candidate])


@scenario
async def test_its_load_counts_until_its_end() -> None:
    """The first of an answer ends the prompt's wait; a long one counts past two deadlines."""
    rig = make_rig()
    exchange = begun(rig, task="first")
    ledger = rig.core.view.load.ledger
    assert ledger.totals()["large", "e0"][1] == 9.0
    exchange.on_headers(200, None)
    assert ledger.totals()["large", "e0"][1] == 0.0
    await asyncio.sleep(5.0)
    rig.core.leases.expire()
    assert len(ledger) == 1
    exchange.complete()
    exchange.drop()
    assert exchange.job.outcome is Outcome.ON_TIME
    rig.assert_settled()


@scenario
async def test_a_gateway_that_hangs_holds_a_lease_for_so_long() -> None:
    """The cutoff, and a little."""
    rig = make_rig()
    exchange = begun(rig)
    await asyncio.sleep(0.4 + GRACE_S - 0.1)
    rig.core.leases.expire()
    assert exchange.job.outcome is None
    await asyncio.sleep(0.2)
    rig.core.leases.expire()
    assert exchange.job.reason == "LEASE_EXPIRED"
    exchange.complete()
    rig.assert_settled()


@scenario
async def test_what_is_seen_teaches_as_an_answer_that_was_relayed() -> None:
    """A slow device is known as one; lengths are not, since nobody counted tokens."""
    rig = make_rig()
    for _ in range(60):
        exchange = begun(rig, task="soft")
        await asyncio.sleep(0.5)
        exchange.on_headers(200, None)
        exchange.complete()
    slowness = rig.core.view.fleet.slowness.apply()
    assert slowness[0] > 2.0
    predicted = rig.core.validator._lengths.predict("soft", 100)
    assert predicted == make_rig().core.validator._lengths.predict("soft", 100)
    rig.assert_settled()


@scenario
async def test_another_target_that_answers_has_what_failed_blamed() -> None:
    """Everything in the list before it; the load moves, the step down is explained."""
    rig = make_rig(endpoint_count=2)
    exchange = begun(rig)
    first, second, *_ = exchange.targets
    assert (first.tier, second.tier) == ("large", "large")
    smaller = exchange.targets[2]
    exchange.on_headers(200, smaller)
    assert dict(rig.core.view.load.ledger.totals()).keys() == {smaller.candidate}
    exchange.complete()
    job = exchange.job
    assert (job.retry_count, job.step_down, job.tier) == (2, StepDown.RETRY, "medium")
    assert first.breaker.last_reason == second.breaker.last_reason == "RETRIED_BY_GATEWAY"
    [attempt] = job.attempts
    assert (attempt.target, attempt.kind, attempt.result) == (smaller, "retry", "ok")
    rig.assert_settled()


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [
        (500, Outcome.FAILED, "ENDPOINT_FAILED"),
        (503, Outcome.FAILED, "ENDPOINT_FAILED"),
        (429, Outcome.FAILED, "TIER_OVERLOADED"),
        (404, Outcome.INVALID, "TIER_REFUSED_REQUEST"),
        (304, Outcome.ON_TIME, ""),
    ],
)
def test_a_status_says_how_it_ended(status: int, outcome: Outcome, reason: str) -> None:
    """Errors of the endpoint count against it, those of the request do not."""

    @scenario
    async def scene() -> None:
        rig = make_rig()
        exchange = begun(rig)
        exchange.on_headers(status, None)
        exchange.complete()
        assert (exchange.job.outcome, exchange.job.reason) == (outcome, reason)
        is_blamed = exchange.served.breaker.last_reason == f"HTTP_{status}"
        assert is_blamed == (status >= 500)
        rig.assert_settled()

    scene()


@scenario
async def test_an_endpoint_that_answers_429_to_everybody_is_left_alone() -> None:
    """One that does so to some is busy; for this one nothing is under way, and it looks idle."""
    rig = make_rig(endpoint_count=2)
    first = begun(rig)
    refusing = first.targets[0].endpoint
    first.drop()
    is_refused: list[bool] = []

    async def carry(exchange: Exchange) -> None:
        is_refused.append(exchange.targets[0].endpoint == refusing)
        if is_refused[-1]:
            exchange.on_headers(429, None)
        else:
            await asyncio.sleep(0.05)
            exchange.on_headers(200, None)
        exchange.complete()

    async with asyncio.TaskGroup() as group:
        for _ in range(500):
            group.create_task(carry(begun(rig)))
            await asyncio.sleep(0.01)
    assert sum(is_refused[-100:]) < 5


@pytest.mark.parametrize(("status", "share"), [(500, 0.002), (502, 0.0), (503, 0.0)])
@scenario
async def test_what_a_request_may_be_at_fault_for_closes_nothing(status: int, share: float) -> None:
    """A client that makes a server say 500 would have everybody's requests go elsewhere."""
    rig = make_rig(endpoint_count=2)
    failed = begun(rig).targets[0]
    for _ in range(3):
        exchange = begun(rig, tier=failed.tier)
        exchange.on_headers(status, failed)
        exchange.complete()
    assert failed.breaker.state is BreakerState.EJECTED
    assert failed.breaker.availability(rig.clock.monotonic_s()) == share


@scenario
async def test_a_gateways_timeout_is_a_miss_and_no_failure() -> None:
    """Silence counts only where the predicted time has passed."""
    rig = make_rig()
    exchange = begun(rig)
    await asyncio.sleep(0.4)
    exchange.on_headers(504, None)
    exchange.complete()
    assert exchange.job.outcome is Outcome.LATE
    assert exchange.served.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("is_told", [True, False])
def test_an_end_at_the_deadline_is_silence_only_where_a_beginning_would_be_told(
    is_told: bool,
) -> None:
    """Else the answer may have been coming in all the time."""

    @scenario
    async def scene() -> None:
        rig = make_rig()
        for _ in range(3):
            exchange = begun(rig, is_told=is_told, task="soft", deadline_s=4.0)
            await asyncio.sleep(exchange.job.cutoff_s - rig.clock.monotonic_s())
            exchange.drop()
            assert exchange.job.outcome is Outcome.LATE
        is_closed = exchange.served.breaker.state is BreakerState.CLOSED
        assert is_closed == (not is_told)

    scene()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_client_that_leaves_beyond_its_deadline_met_silence(is_told: bool) -> None:
    """A stream may go on after it; of one that had no answer yet nobody would hear otherwise."""

    @scenario
    async def scene() -> None:
        rig = make_rig()
        for _ in range(5):
            exchange = begun(rig, is_told=is_told, task="first")
            await asyncio.sleep(1.0)
            exchange.drop()
            assert exchange.job.outcome is Outcome.CANCELLED
        is_closed = exchange.served.breaker.state is BreakerState.CLOSED
        assert is_closed == (not is_told)
        rig.assert_settled()

    scene()


@pytest.mark.parametrize("is_told", [True, False])
def test_what_is_cut_has_a_reason_unless_no_answer_had_begun(is_told: bool) -> None:
    """Where a beginning would have been told, there was none."""

    @scenario
    async def scene() -> None:
        rig = make_rig()
        exchange = begun(rig, is_told=is_told)
        exchange.drop()
        assert exchange.job.reason == ("" if is_told else REASON_CUT)
        rig.assert_settled()

    scene()


@scenario
async def test_the_first_token_is_predicted_as_decisions_predict_it() -> None:
    """Alone, beside others, and with all slots taken: as for a deadline of the first token."""
    rig = make_rig()
    limit = int(rig.core.view.fleet.latest.arrays.max_batch_C.max())
    for count in range(2 * limit):
        first = begun(rig, task="first", deadline_s=3_600.0)
        assert first_token_s(first.choice, first.job.request) == pytest.approx(
            first.choice.predicted_s
        )
        first.drop()
        whole = begun(rig, task="soft", deadline_s=3_600.0)
        found = first_token_s(whole.choice, whole.job.request)
        assert found == pytest.approx(first.choice.predicted_s, rel=0.01)
        assert found < whole.choice.predicted_s
        if count % 2:
            whole.on_headers(200, None)


@scenario
async def test_without_the_safety_net_there_is_one_target() -> None:
    """As at every door nothing is tried again."""
    rig = make_rig(endpoint_count=2, safety_net=False)
    exchange = begun(rig)
    assert len(exchange.targets) == 1
    exchange.drop()
    rig.assert_settled()
