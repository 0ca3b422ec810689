"""Leases: a ticket counts until its report, or until its lease ends."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from router.catalog import QualityTable
from router.types import SloKind, Task
from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from services.router_inference.job import Job, Outcome
from services.router_inference.path.first_token import first_token_s
from services.router_inference.path.hold import CLAIMED_HIGHEST
from services.router_inference.path.leases import Report
from tests.unit.services.router_inference.parts import TASKS, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

DONE = Report(Outcome.ON_TIME, None, 8, None)
SLOW_QUALITY = QualityTable(
    "table",
    "assumed",
    {name: {"small": 0.5, "medium": 0.8, "large": 1.0} for name in ("hard", "slow")},
    {},
)


def routed(rig: Rig, **fields: Any) -> Job:
    """A checked Route request."""
    return rig.job(prompt=None, prompt_tokens=10, **fields)


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
async def test_the_prompt_of_a_routed_request_waits_for_as_long_as_predicted() -> None:
    """It is out of the next decision's load by then, also where no sweep came in between."""
    rig = make_rig(lease_s=2.0)
    ledger, leases = rig.core.view.load.ledger, rig.core.leases
    tickets = [leases.route(routed(rig, deadline_s=2.0)).ticket]
    assert ledger.totals()["large", "e0"][1] == 10.0
    await asyncio.sleep(1.0)
    tickets.append(leases.route(routed(rig, deadline_s=2.0)).ticket)
    assert list(ledger.totals()["large", "e0"])[:2] == [2.0, 10.0]
    for ticket in tickets:
        leases.close(ticket, DONE)
    rig.assert_settled()


@pytest.mark.parametrize("kind", [SloKind.FIRST_TOKEN, SloKind.PER_TOKEN])
@pytest.mark.parametrize(("claim", "reward"), [(Outcome.ON_TIME, 1.0), (Outcome.LATE, 0.0)])
@scenario
async def test_whether_tokens_were_in_time_is_what_the_client_says(
    kind: SloKind, claim: Outcome, reward: float
) -> None:
    """Nobody here saw them; when the answer ended says nothing of them."""
    rig = make_rig()
    for wait_s in (0.1, 3.0):
        ticket = rig.core.leases.route(routed(rig, slo_kind=kind)).ticket
        await asyncio.sleep(wait_s)
        rig.core.leases.close(ticket, dataclasses.replace(DONE, outcome=claim))
        assert (await rig.records())[-1].outcome.reward == reward


@pytest.mark.parametrize("interval_s", [0.0005, 10.0])
@scenario
async def test_the_first_token_is_expected_alike_with_any_interval(interval_s: float) -> None:
    """The prediction leaves out what a schedule grants; when the first token comes is the same."""
    rig = make_rig(lease_s=2.0)
    fields = {"deadline_s": 2.0, "slo_kind": SloKind.PER_TOKEN, "token_interval_s": interval_s}
    paced, plain = routed(rig, **fields), routed(rig, deadline_s=2.0)
    expected_s = []
    for job in (paced, plain):
        opened = rig.core.leases.route(job)
        expected_s.append(first_token_s(opened.choice, job.request))
        rig.core.leases.close(opened.ticket, DONE)
    assert expected_s[0] == pytest.approx(expected_s[1])


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
    await asyncio.sleep(0.9)
    second.core.leases.close(ticket, Report(Outcome.LATE, 0.9, 8, None))
    record = (await second.records())[-1].outcome
    assert (record.router_id, record.sequence, record.reward) == ("r1", 1, 0.0)
    with pytest.raises(FailedPreconditionError):
        second.core.leases.close(ticket, DONE)


@scenario
async def test_a_ticket_closed_at_two_routers_is_one_outcome_to_the_learner() -> None:
    """Neither knows of the other's close; both records name the same decision."""
    rigs = first, second = make_rig(ticket_key="k" * 32), make_rig(ticket_key="k" * 32)
    second.core.leases._router_id = "r2"
    ticket = first.core.leases.route(routed(first)).ticket
    for rig in rigs:
        rig.core.leases.close(ticket, DONE)
    records = [(await rig.records())[-1].outcome for rig in rigs]
    keys = {(record.router_id, record.epoch, record.sequence) for record in records}
    assert keys == {("r1", first.core.leases._epoch, 1)}
    assert [rig.core.accounts.counts.on_time for rig in rigs] == [1, 0]
    first.assert_settled()


@scenario
async def test_a_forged_ticket_is_bad_input() -> None:
    """INVALID_ARGUMENT, not a crash."""
    rig = make_rig()
    with pytest.raises(InvalidArgumentError) as caught:
        rig.core.leases.close(b"not a ticket", DONE)
    assert caught.value.reason == "TICKET_INVALID"


@scenario
async def test_late_feedback_changes_the_reward_once() -> None:
    """Feedback for an answered request writes its outcome again, scaled to the quality seen."""
    rig = make_rig()
    await rig.answer(rig.job(request_id="mine"))
    rig.core.leases.feedback("", "mine", 0.25)
    record = (await rig.records())[-1].outcome
    assert (record.feedback_quality, record.reward, record.sequence) == (0.25, 0.25, 1)
    for name in ("mine", "unknown"):
        with pytest.raises(NotFoundError):
            rig.core.leases.feedback("", name, 0.5)


@scenario
async def test_late_feedback_is_the_askers_alone() -> None:
    """Two clients with one request id: each speaks of its own request; a third of none."""
    rig = make_rig()
    for host in ("1.1.1.1", "2.2.2.2"):
        await rig.answer(rig.job(request_id="same", client=host))
    with pytest.raises(NotFoundError):
        rig.core.leases.feedback("3.3.3.3", "same", 0.0)
    rig.core.leases.feedback("1.1.1.1", "same", 0.25)
    assert (await rig.records())[-1].outcome.sequence == 1


@scenario
async def test_open_tickets_are_bounded_apart_from_requests() -> None:
    """Clients that never report fill their own limit, not that of answered requests."""
    rig = make_rig(max_leases=2, max_in_flight=1)
    for _ in range(2):
        rig.core.leases.route(routed(rig))
    with pytest.raises(ResourceExhaustedError) as caught:
        rig.core.leases.route(routed(rig))
    assert caught.value.reason == "ROUTER_FULL"
    await rig.answer(rig.job())
    assert rig.core.accounts.counts.refused == 1


@scenario
async def test_one_client_does_not_take_all_tickets() -> None:
    """Its own limit counts over all its tickets, and is free again with a report."""
    rig = make_rig(max_leases_per_client=2)
    tickets = [rig.core.leases.route(routed(rig, client="one")).ticket for _ in range(2)]
    traffic, now_s = rig.core.view.traffic, rig.clock.monotonic_s()
    before_rps = traffic.own_rate_rps(now_s)
    with pytest.raises(ResourceExhaustedError) as caught:
        rig.core.leases.route(routed(rig, client="one"))
    assert caught.value.reason == "CLIENT_FULL"
    assert caught.value.retry_after_s is not None
    assert traffic.own_rate_rps(now_s) == before_rps  # what it may not have is no traffic
    rig.core.leases.route(routed(rig, client="other"))
    rig.core.leases.close(tickets[0], DONE)
    rig.core.leases.route(routed(rig, client="one"))


@scenario
async def test_leases_end_in_order_of_their_ends() -> None:
    """A task with long deadlines leased first keeps no later ticket of a short one open."""
    rig = make_rig(lease_s=1.0, tasks=(TASKS[0], Task("slow", 60.0)), quality=SLOW_QUALITY)
    rig.core.leases.route(routed(rig, task="slow"))
    for _ in range(20):
        rig.core.leases.route(routed(rig))
    await asyncio.sleep(1.1)
    rig.core.leases.expire()
    assert rig.core.leases.open_count == 1


@scenario
async def test_a_claimed_load_counts_no_longer_than_such_requests_take() -> None:
    """Tickets nobody closes, with the longest deadline there is, are load for two deadlines."""
    rig = make_rig(lease_s=30.0)
    tickets = [rig.core.leases.route(routed(rig, deadline_s=30.0)).ticket for _ in range(500)]
    await asyncio.sleep(0.79)
    rig.core.leases.expire()
    assert len(rig.core.view.load.ledger) == 500
    await asyncio.sleep(0.02)
    rig.core.leases.expire()
    assert len(rig.core.view.load.ledger) == 0
    await rig.answer(rig.job())
    rig.core.leases.close(tickets[0], DONE)
    assert rig.core.leases.open_count == 499


@scenario
async def test_the_wall_clock_ends_no_lease() -> None:
    """Set an hour forward or back, tickets are as old as they are."""
    for step_ns in (3_600 * 10**9, -3_600 * 10**9):
        rig = make_rig(lease_s=2.0)
        other = make_rig(lease_s=2.0, ticket_key="k" * 32)
        other.core.leases._signer = rig.core.leases._signer
        other.core.leases._router_id = "r2"
        tickets = [rig.core.leases.route(routed(rig)).ticket for _ in range(3)]
        before = rig.clock.wall_ns
        rig.clock.wall_ns = other.clock.wall_ns = lambda: before() + step_ns  # type: ignore[method-assign]  # noqa: B023
        rig.core.leases.expire()
        assert rig.core.leases.open_count == 3
        rig.core.leases.close(tickets[0], DONE)
        other.core.leases.close(tickets[1], DONE)
        await asyncio.sleep(2.1)
        rig.core.leases.expire()
        assert rig.core.leases.open_count == 0
        for leases in (rig.core.leases, other.core.leases):
            with pytest.raises(FailedPreconditionError) as caught:
                leases.close(tickets[2], DONE)
            assert caught.value.reason == "TICKET_EXPIRED"


@scenario
async def test_a_ticket_of_another_machine_needs_its_latency() -> None:
    """No clock here can tell how old it is; what is stated counts up to the lease."""
    first, second = make_rig(ticket_key="k" * 32), make_rig(ticket_key="k" * 32)
    second.core.leases._router_id, second.core.leases._clock_id = "r2", "another"
    ticket = first.core.leases.route(routed(first)).ticket
    with pytest.raises(InvalidArgumentError) as caught:
        second.core.leases.close(ticket, DONE)
    assert caught.value.field == "latency"
    second.core.leases.close(ticket, Report(Outcome.LATE, 86_400.0, 8, None))
    record = (await second.records())[-1].outcome
    assert record.latency.ToTimedelta().total_seconds() == 30.0


@scenario
async def test_a_latency_is_no_longer_than_the_ticket_is_old() -> None:
    """The claim of a day after a tenth of a second counts as a tenth of a second."""
    rig = make_rig()
    ticket = rig.core.leases.route(routed(rig)).ticket
    await asyncio.sleep(0.1)
    rig.core.leases.close(ticket, Report(Outcome.LATE, 86_400.0, 8, None))
    record = (await rig.records())[-1].outcome
    assert record.latency.ToTimedelta().total_seconds() == pytest.approx(0.1)


@scenario
async def test_a_claim_is_bounded_by_its_ticket() -> None:
    """More tokens than were asked for are refused, here and by other workers; it stays open."""
    first, second = make_rig(ticket_key="k" * 32), make_rig(ticket_key="k" * 32)
    second.core.leases._router_id = "r2"
    ticket = first.core.leases.route(routed(first, max_output_tokens=16)).ticket
    for rig in (first, second):
        with pytest.raises(InvalidArgumentError) as caught:
            rig.core.leases.close(ticket, Report(Outcome.ON_TIME, None, 17, None))
        assert caught.value.field == "output_token_count"
    first.core.leases.close(ticket, Report(Outcome.ON_TIME, None, 16, None))


@scenario
async def test_what_reports_say_of_lengths_moves_little() -> None:
    """A thousand claims of the most that a ticket allows double the prediction at most."""
    rig = make_rig()
    before = rig.job(max_output_tokens=512).request.output_tokens
    for number in range(1_000):
        ticket = rig.core.leases.route(routed(rig, max_output_tokens=2_048)).ticket
        rig.core.leases.close(ticket, Report(Outcome.ON_TIME, None, 2_048, None))
        if number == 0:
            first = rig.job(max_output_tokens=512).request.output_tokens
            assert first <= 1.1 * before
    assert before < rig.job(max_output_tokens=512).request.output_tokens <= 2.0 * before + 1.0


@scenario
async def test_what_reports_say_of_lateness_moves_little() -> None:
    """Hundreds of late reports press a little on the price of device time, and send none down."""
    rig = make_rig()
    for _ in range(300):
        ticket = rig.core.leases.route(routed(rig)).ticket
        rig.core.leases.close(ticket, Report(Outcome.LATE, None, 8, None))
        await asyncio.sleep(2.0 / 300)
    assert 0.5 < rig.core.hold.pressure() <= CLAIMED_HIGHEST
    assert rig.core.admission.factor() == pytest.approx(0.7)
    await asyncio.sleep(30.0)
    rig.core.leases.route(routed(rig))
    assert rig.core.hold.pressure() == 0.0


@scenario
async def test_without_a_target_reports_of_lateness_raise_caution_a_little() -> None:
    """Hundreds of late reports make admission take predictions as they are, and no longer."""
    rig = make_rig(tasks=tuple(dataclasses.replace(task, target=0.0) for task in TASKS))
    for _ in range(300):
        ticket = rig.core.leases.route(routed(rig)).ticket
        rig.core.leases.close(ticket, Report(Outcome.LATE, None, 8, None))
        await asyncio.sleep(2.0 / 300)
    assert 0.7 < rig.core.admission.factor() <= 1.0
    await asyncio.sleep(30.0)
    assert rig.core.admission.factor() == pytest.approx(0.7)


@scenario
async def test_a_ticket_is_closed_by_the_client_it_was_given_to() -> None:
    """Wherever it is closed: at its router, or at another one of the mesh."""
    rig, other = make_rig(ticket_key="k" * 32), make_rig(ticket_key="k" * 32)
    other.core.leases._router_id = "r2"
    job = routed(rig)
    job.client = "shop"
    ticket = rig.core.leases.route(job).ticket
    for leases in (rig.core.leases, other.core.leases):
        with pytest.raises(PermissionDeniedError) as caught:
            leases.close(ticket, DONE, "somebody")
        assert caught.value.reason == "TICKET_NOT_OWN"
    rig.core.leases.close(ticket, DONE, "shop")
    rig.assert_settled()


@scenario
async def test_closed_tickets_of_a_long_task_take_no_memory() -> None:
    """Their ends are an hour away; what is open still ends in its time."""
    long = (*TASKS, Task("batch", 3600.0))
    quality = {task.name: {"small": 0.5, "medium": 0.8, "large": 1.0} for task in long}
    rig = make_rig(tasks=long, quality=QualityTable("table", "assumed", quality, {}))
    leases = rig.core.leases
    kept = leases.route(routed(rig, task="batch"))
    for _ in range(3_000):
        leases.close(leases.route(routed(rig, task="batch")).ticket, DONE)
    leases.expire()
    assert len(leases._ends) + len(leases._load_ends) + len(leases._first_tokens) < 100
    await asyncio.sleep(3600.1)
    leases.expire()
    assert kept.job.reason == "LEASE_EXPIRED"
    rig.assert_settled()


@scenario
async def test_an_end_without_a_token_is_no_answer_wherever_it_is_reported() -> None:
    """It earns nothing, at the worker that decided and at another one."""
    first, second = make_rig(ticket_key="k" * 32), make_rig(ticket_key="k" * 32)
    second.core.leases._router_id = "r2"
    for closing in (first, second):
        ticket = first.core.leases.route(routed(first)).ticket
        closing.core.leases.close(ticket, dataclasses.replace(DONE, output_tokens=0))
        record = (await closing.records())[-1].outcome
        assert (record.output_token_count, record.reward, record.quality) == (0, 0.0, 0.0)
        assert not record.HasField("served_by")
