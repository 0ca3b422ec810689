"""Leases: a ticket counts until its report, or until its lease ends."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.router_inference.path.job import Outcome
from services.router_inference.path.leases import Report
from services.router_inference.path.tickets import Ticket
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario

KEY = b"k" * 32
TICKET = Ticket("r", 1, 2, 3, 4, 0.5, 0.0, 0.8, "task", "small", "e0", "id-ü")
DONE = Report(Outcome.ON_TIME, None, 8, None)


@scenario
async def test_a_routed_request_counts_until_its_report() -> None:
    """Load from the decision to the report; then one outcome, and the ticket is used up."""
    rig = make_rig()
    routed = rig.core.leases.route(rig.job(prompt=None, prompt_tokens=10))
    assert rig.core.view.load.ledger.totals()["large", "e0"][0] == 1.0
    await asyncio.sleep(0.1)
    rig.core.leases.close(routed.ticket, DONE)
    rig.assert_settled()
    assert rig.core.accounts.counts.on_time == 1
    with pytest.raises(FailedPreconditionError) as caught:
        rig.core.leases.close(routed.ticket, DONE)
    assert caught.value.reason == "TICKET_CLOSED"
    record = (await rig.records())[-1].outcome
    assert (record.output_token_count, record.reward) == (8, 1.0)
    assert record.latency.ToTimedelta().total_seconds() == pytest.approx(0.1)


@scenario
async def test_a_lease_without_a_report_ends() -> None:
    """The load is taken back, the request counts as failed, its record says lease expired."""
    rig = make_rig(lease_s=2.0)
    routed = rig.core.leases.route(rig.job(prompt=None, prompt_tokens=10))
    await asyncio.sleep(1.9)
    rig.core.leases.expire()
    assert rig.core.leases.open_count == 1
    await asyncio.sleep(0.2)
    rig.core.leases.expire()
    rig.assert_settled()
    assert rig.core.accounts.counts.failed == 1
    assert (await rig.records())[-1].outcome.status == 6
    with pytest.raises(FailedPreconditionError) as caught:
        rig.core.leases.close(routed.ticket, DONE)
    assert caught.value.reason == "TICKET_EXPIRED"


@scenario
async def test_another_worker_with_the_key_closes_a_ticket() -> None:
    """The record carries the identity of the worker that decided; a second close is refused."""
    first = make_rig(ticket_key="k" * 32)
    second = make_rig(ticket_key="k" * 32)
    second.core.leases._router_id = "r2"
    ticket = first.core.leases.route(first.job(prompt=None, prompt_tokens=10)).ticket
    second.core.leases.close(ticket, Report(Outcome.LATE, 0.9, 8, None))
    record = (await second.records())[-1].outcome
    assert (record.router_id, record.sequence, record.reward) == ("r1", 1, 0.0)
    with pytest.raises(FailedPreconditionError):
        second.core.leases.close(ticket, DONE)


@scenario
async def test_a_forged_ticket_is_bad_input() -> None:
    """INVALID_ARGUMENT, not a crash."""
    rig = make_rig()
    with pytest.raises(InvalidArgumentError) as caught:
        rig.core.leases.close(b"not a ticket", DONE)
    assert caught.value.reason == "TICKET_INVALID"


@scenario
async def test_late_feedback_changes_the_reward() -> None:
    """Feedback for an answered request writes its outcome again, scaled to the quality seen."""
    rig = make_rig()
    await rig.answer(rig.job(request_id="mine"))
    rig.core.leases.feedback("mine", 0.25)
    record = (await rig.records())[-1].outcome
    assert (record.feedback_quality, record.reward, record.sequence) == (0.25, 0.25, 1)
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("unknown", 0.5)


@scenario
async def test_open_tickets_are_bounded_apart_from_requests() -> None:
    """Clients that never report fill their own limit, not that of answered requests."""
    rig = make_rig(max_leases=2, max_in_flight=1)
    for _ in range(2):
        rig.core.leases.route(rig.job(prompt=None, prompt_tokens=10))
    with pytest.raises(ResourceExhaustedError) as caught:
        rig.core.leases.route(rig.job(prompt=None, prompt_tokens=10))
    assert caught.value.reason == "ROUTER_FULL"
    await rig.answer(rig.job())
    assert rig.core.accounts.counts.refused == 1
