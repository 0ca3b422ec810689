"""Messages of the router's service to and from dataclasses."""

from __future__ import annotations

from typing import Any

import pytest

from router.types import Priority, SloKind
from services.common.errors import InvalidArgumentError
from services.router_inference.doors import convert
from services.router_inference.job import Outcome, StepDown
from tests.unit.services.router_inference.doors.test_validation import validator
from tests.unit.services.router_inference.parts import Behaviour, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2


def test_what_a_spec_leaves_out_stays_unsaid() -> None:
    """Unset is not zero: the validator fills in the task's defaults."""
    ask = convert.ask_of_spec(
        pb2.GenerationSpec(task="hard", prompt="hi"), 1.5, None, "", is_stream=True
    )
    assert (ask.task, ask.prompt, ask.call_left_s, ask.is_stream) == ("hard", "hi", 1.5, True)
    unsaid = (ask.max_output_tokens, ask.deadline_s, ask.slo_kind, ask.seed, ask.prompt_tokens)
    assert (*unsaid, ask.token_interval_s) == (None,) * 6


def test_a_spec_is_read_field_by_field() -> None:
    """Every field reaches the ask under its own name."""
    spec = pb2.GenerationSpec(
        task="hard",
        prompt="hi",
        max_output_tokens=7,
        quality_floor=0.5,
        tier="small",
        request_id="mine",
        conversation_id="talk",
        slo_kind=common_pb2.SLO_KIND_PER_TOKEN,
        priority=common_pb2.PRIORITY_LOW,
        sampling=pb2.Sampling(temperature=0.7, seed=3),
    )
    spec.deadline.FromMilliseconds(250)
    spec.token_interval.FromMilliseconds(50)
    ask = convert.ask_of_spec(spec, None, (), "", is_stream=False)
    assert (ask.max_output_tokens, ask.deadline_s, ask.slo_kind) == (7, 0.25, SloKind.PER_TOKEN)
    assert ask.token_interval_s == 0.05
    assert (ask.temperature, ask.seed, ask.quality_floor) == (0.7, 3, 0.5)
    assert (ask.tier, ask.request_id, ask.conversation_id) == ("small", "mine", "talk")
    assert ask.priority is Priority.LOW
    request = pb2.RouteRequest(priority=common_pb2.PRIORITY_HIGH)
    request.token_interval.FromMilliseconds(50)
    asked = convert.ask_of_route(request, None, "")
    assert (asked.priority, asked.token_interval_s) == (Priority.HIGH, 0.05)


@scenario
async def test_a_completion_says_who_answered_and_why() -> None:
    """Tier, endpoint, the policy that chose, the step-down, and the times of the answer."""
    rig = make_rig(policy="static-small")
    rig.tier().default = Behaviour(step_s=0.01)
    job = rig.job(request_id="mine")
    await rig.answer(job)
    message = convert.generate_response(job, "").completion
    assert (message.tier, message.endpoint, message.request_id) == ("small", "e0", "mine")
    assert (message.policy, message.policy_version) == (
        "static-small", choice_of(job).policy_version,
    )  # fmt: skip
    assert (message.on_time, message.quality, message.output_token_count) == (True, 0.5, 2)
    assert message.step_down_reason == common_pb2.STEP_DOWN_REASON_POLICY
    assert message.timings.total.ToMilliseconds() == 20
    assert message.timings.first_token.ToMilliseconds() == 10
    assert message.timings.early.ToMilliseconds() == 380
    parts = [getattr(message.timings, part) for part in ("queue", "prefill", "decode", "hop")]
    assert [part.ToMilliseconds() for part in parts] == [8, 2, 10, 0]


@scenario
async def test_an_answer_that_missed_its_deadline_says_by_how_much() -> None:
    """As a negative span; only soft deadlines are missed by an answer."""
    rig = make_rig()
    rig.tier().default = Behaviour(step_s=0.3)
    job = rig.job(task="soft")
    await rig.answer(job)
    message = convert.generate_response(job, "").completion
    assert not message.on_time
    assert message.timings.early.ToMilliseconds() == -200


def test_every_reason_and_every_end_has_its_message() -> None:
    """A new one that nobody converts would raise on the request path."""
    assert set(convert._STEP_DOWNS) == set(StepDown)
    assert set(convert.REPORTED_OUTCOMES.values()) == set(Outcome) - {
        Outcome.REFUSED,
        Outcome.INVALID,
    }


@scenario
async def test_a_routed_request_is_told_where_to_go_and_until_when() -> None:
    """Address and model, the prediction, and the end of the lease."""
    rig = make_rig(lease_s=2.0)
    response = convert.route_response(rig.core.leases.route(rig.job(prompt=None, prompt_tokens=9)))
    assert (response.tier, response.address, response.model_name) == (
        "large", "127.0.0.1:9000", "large",
    )  # fmt: skip
    assert response.predicted_latency.ToNanoseconds() > 0
    lease_ns = response.lease_expire_time.ToNanoseconds() - rig.clock.wall_ns()
    assert lease_ns == 2_000_000_000


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"ticket": b"", "status": 1}, ["ticket"]),
        ({"ticket": b"t", "status": 3}, ["status"]),
        ({"ticket": b"t", "status": 1, "output_token_count": -1}, ["output_token_count"]),
        ({"ticket": b"t", "status": 1, "quality": 1.5}, ["quality"]),
        ({"status": 0, "quality": -1.0}, ["ticket", "status", "quality"]),
    ],
)
def test_a_report_names_every_field_that_is_wrong(fields: dict[str, Any], named: list[str]) -> None:
    """All at once, so that a client mends them in one go."""
    with pytest.raises(InvalidArgumentError) as caught:
        convert.report(pb2.ReportOutcomeRequest(**fields))
    assert [field for field, _ in caught.value.violations] == named


def test_feedback_needs_a_quality_in_range() -> None:
    """Feedback without one says nothing."""
    good = pb2.ReportOutcomeRequest(request_id="mine", quality=0.25)
    assert convert.feedback_quality(good) == 0.25
    beyond = pb2.ReportOutcomeRequest(request_id="mine", quality=2.0)
    for request in (pb2.ReportOutcomeRequest(request_id="mine"), beyond):
        with pytest.raises(InvalidArgumentError):
            convert.feedback_quality(request)


def _ticket_report(**fields: Any) -> pb2.ReportOutcomeRequest:
    request = pb2.ReportOutcomeRequest(ticket=b"t", status=common_pb2.OUTCOME_STATUS_LATE)
    for name, value in fields.items():
        if name.startswith("latency_"):
            setattr(request.latency, name.removeprefix("latency_"), value)
        else:
            setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"latency_seconds": 2**63 - 1}, "latency"),
        ({"latency_seconds": -(2**63)}, "latency"),
        ({"latency_seconds": 86_401}, "latency"),
        ({"latency_nanos": -1}, "latency"),
        ({"latency_nanos": 2**31 - 1}, "latency"),
        ({"latency_seconds": 1, "latency_nanos": -1}, "latency"),
        ({"output_token_count": 2**31 - 1}, "output_token_count"),
        ({"output_token_count": -1}, "output_token_count"),
        ({"quality": float("nan")}, "quality"),
        ({"quality": 1.01}, "quality"),
        ({"status": common_pb2.OUTCOME_STATUS_INVALID}, "status"),
        ({"status": 99}, "status"),
    ],
)
def test_every_number_of_a_report_has_its_range(fields: dict[str, Any], field: str) -> None:
    """What is outside is INVALID_ARGUMENT with the field; nothing of it goes on."""
    with pytest.raises(InvalidArgumentError) as caught:
        convert.report(_ticket_report(**fields))
    assert [name for name, _ in caught.value.violations] == [field]


@pytest.mark.parametrize(("name", "quality"), [("x" * 129, 0.5), ("", 0.5), ("mine", -0.1)])
def test_feedback_has_its_limits(name: str, quality: float) -> None:
    """A name as long as names of requests may be, and a quality."""
    with pytest.raises(InvalidArgumentError):
        convert.feedback_quality(pb2.ReportOutcomeRequest(request_id=name, quality=quality))


@pytest.mark.parametrize(("seconds", "nanos"), [(0, 2**31 - 1), (1, -1), (-1, 1)])
def test_a_span_that_is_none_is_no_deadline(seconds: int, nanos: int) -> None:
    """Nanoseconds beyond a second or of the other sign are refused, not added up."""
    spec = pb2.GenerationSpec(task="hard", prompt="hi")
    spec.deadline.seconds, spec.deadline.nanos = seconds, nanos
    ask = convert.ask_of_spec(spec, None, (), "", is_stream=False)
    with pytest.raises(InvalidArgumentError) as caught:
        validator().job(ask, 100.0, 10**18)
    assert caught.value.field == "spec.deadline"


@pytest.mark.parametrize(
    ("left_s", "value", "waited_s"),
    [
        (0.1, "400", 0.3),
        (0.5, "400", 0.0),
        (-1.0, "400", 0.4),
        (None, "400", 0.0),
        (0.1, "-400", 0.0),
        (0.1, "1e999", 0.0),
        (0.1, "9" * 5_000, 0.0),
        (0.1, "", 0.0),
    ],
)
def test_what_is_left_of_a_stated_limit_tells_the_wait(
    left_s: float | None, value: str, waited_s: float
) -> None:
    """A statement that cannot be is none."""
    metadata = (("traceparent", "x"), (convert.TIMEOUT_KEY, value))
    ask = convert.ask_of_spec(pb2.GenerationSpec(), left_s, metadata, "", is_stream=False)
    assert ask.waited_s == pytest.approx(waited_s)
