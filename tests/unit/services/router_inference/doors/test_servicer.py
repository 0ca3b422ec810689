"""The service as handlers: convert, call, convert; what is bad input is counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError
from services.router_inference.doors.convert import TIMEOUT_KEY
from services.router_inference.doors.servicer import READER_GRACE_S, REASON_NOT_READ
from services.router_inference.job import Outcome
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.policy.test_slot import snapshot_bytes
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2


class Call:
    """What handlers ask a gRPC call for, with a reader that takes what is written, or nothing."""

    def __init__(
        self,
        *,
        is_read: bool = True,
        metadata: tuple[tuple[str, str], ...] = (),
        left_s: float | None = None,
    ) -> None:
        self.written: list[Any] = []
        self._is_read = is_read
        self._metadata = metadata
        self._left_s = left_s

    async def write(self, message: Any) -> None:
        """Takes a message as it is now, as the wire does, or waits for ever."""
        if not self._is_read:
            await asyncio.Event().wait()
        self.written.append(type(message).FromString(message.SerializeToString()))

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns its metadata; none unless a test asks for some."""
        return self._metadata

    def peer(self) -> str:
        """Returns an address."""
        return "ipv4:127.0.0.1:50000"

    def time_remaining(self) -> float | None:
        """Returns the time left; None: the call has no deadline."""
        return self._left_s


CALL: Any = Call()
SPEC = pb2.GenerationSpec(task="hard", prompt="hello")


@scenario
async def test_generate_answers_in_one_piece() -> None:
    """Text and completion in one message."""
    response = await make_rig().core.servicer.Generate(pb2.GenerateRequest(spec=SPEC), CALL)
    assert (response.text, response.completion.tier) == ("ab", "large")


@scenario
async def test_how_long_calls_waited_is_counted() -> None:
    """What is missing of a stated limit is the wait; a call that states none counts for none."""
    rig = make_rig()
    waited: Any = Call(metadata=((TIMEOUT_KEY, "5000"),), left_s=4.75)
    for call in (CALL, waited):
        await rig.core.servicer.Generate(pb2.GenerateRequest(spec=SPEC), call)
    found = {
        sample.name: sample.value
        for family in rig.core.accounts.collect()
        for sample in family.samples
        if family.name == "tiercel_call_wait_seconds"
    }
    assert found["tiercel_call_wait_seconds_count"] == 1.0
    assert found["tiercel_call_wait_seconds_sum"] == pytest.approx(0.25)


@scenario
async def test_a_stream_ends_with_its_completion() -> None:
    """Chunks first, the completion last and once."""
    call: Any = Call()
    await make_rig().core.servicer.GenerateStream(pb2.GenerateStreamRequest(spec=SPEC), call)
    *chunks, last = call.written
    assert "".join(message.chunk.text for message in chunks) == "ab"
    assert last.completion.output_token_count == 2


@scenario
async def test_a_stream_that_nobody_reads_ends_soon_after_its_deadline() -> None:
    """The tier is done long before; nothing is held for a reader that does not come."""
    rig = make_rig()
    unread: Any = Call(is_read=False)
    start_s = rig.clock.monotonic_s()
    with pytest.raises(DeadlineExceededError) as caught:
        await rig.core.servicer.GenerateStream(pb2.GenerateStreamRequest(spec=SPEC), unread)
    assert caught.value.reason == REASON_NOT_READ
    taken_s = rig.clock.monotonic_s() - start_s
    assert taken_s == pytest.approx(0.4 + READER_GRACE_S, abs=0.01)
    rig.assert_settled()


@scenario
async def test_a_decision_is_explained_afterwards() -> None:
    """In the numbers it was taken on, also when the load has moved on; an unknown one is not."""
    rig = make_rig(policy="price")
    servicer, ledger = rig.core.servicer, rig.core.view.load.ledger
    ledger.dispatch("before", ("large", "e0"), 5.0, 8.0)
    request = pb2.RouteRequest(task="hard", prompt_token_count=9, tier="large", request_id="mine")
    routed = await servicer.Route(request, CALL)
    ledger.finish("before")
    found = await servicer.ExplainDecision(pb2.ExplainDecisionRequest(request_id="mine"), CALL)
    chosen = found.candidates[found.action]
    assert (found.request_id, found.sequence, found.policy) == ("mine", 1, "price")
    assert (chosen.candidate.tier, chosen.in_flight_count) == ("large", 1)
    assert chosen.predicted_latency == routed.predicted_latency
    assert [each.allowed for each in found.candidates] == [False, False, True]
    assert [each.HasField("score") for each in found.candidates] == [False, False, True]
    assert (found.prompt_token_count, found.explored) == (9, False)
    with pytest.raises(NotFoundError):
        await servicer.ExplainDecision(pb2.ExplainDecisionRequest(request_id="other"), CALL)


@scenario
async def test_a_learned_decision_is_explained_with_its_features() -> None:
    """A row for each candidate, named."""
    rig = make_rig()
    rig.core.slot._snapshots["dqn"] = snapshot_bytes(tier_bias=1.0)
    rig.core.slot.use("dqn")
    await rig.answer(rig.job(request_id="mine"))
    found = await rig.core.servicer.ExplainDecision(
        pb2.ExplainDecisionRequest(request_id="mine"), CALL
    )
    assert [round(each.features[0], 6) for each in found.candidates] == [0.5, 0.8, 1.0]
    assert {len(each.features) for each in found.candidates} == {len(found.feature_names)}


@scenario
async def test_a_ticket_is_closed_by_its_report() -> None:
    """Route hands it out, ReportOutcome closes it; the request ends as reported."""
    rig = make_rig()
    servicer = rig.core.servicer
    routed = await servicer.Route(pb2.RouteRequest(task="hard", prompt_token_count=9), CALL)
    report = pb2.ReportOutcomeRequest(
        ticket=routed.ticket, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=4
    )
    await servicer.ReportOutcome(report, CALL)
    assert rig.core.accounts.counts.on_time == 1
    rig.assert_settled()


@scenario
async def test_bad_input_is_counted_and_offered_to_nobody() -> None:
    """It is the client's mistake and none of the ends of a request."""
    rig = make_rig()
    servicer = rig.core.servicer
    with pytest.raises(NotFoundError):
        await servicer.Generate(
            pb2.GenerateRequest(spec=pb2.GenerationSpec(task="unknown", prompt="hello")), CALL
        )
    with pytest.raises(InvalidArgumentError):
        await servicer.ReportOutcome(pb2.ReportOutcomeRequest(ticket=b"forged"), CALL)
    counts = rig.core.accounts.counts
    assert (counts.invalid, counts.offered) == (2, 0)
    assert not any(getattr(counts, outcome.value) for outcome in set(Outcome) - {Outcome.INVALID})


@scenario
async def test_a_policy_is_used_from_the_next_decision_on() -> None:
    """The answer names it with its version."""
    rig = make_rig()
    used = await rig.core.servicer.UsePolicy(pb2.UsePolicyRequest(policy="static-small"), CALL)
    assert (used.policy, used.policy_version) == ("static-small", rig.core.slot.version)
    response = await rig.core.servicer.Generate(pb2.GenerateRequest(spec=SPEC), CALL)
    assert response.completion.policy == "static-small"
