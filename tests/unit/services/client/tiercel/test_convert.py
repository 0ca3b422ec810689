"""Arguments to messages, messages to results."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from services.router_inference.doors.convert import REPORTED_OUTCOMES
from tiercel import OutcomeStatus, convert
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


def test_what_is_not_said_stays_unset() -> None:
    """The mesh's defaults hold for it: a zero would be a wish."""
    spec = convert.generation_spec("ab", task="sort")
    assert not spec.HasField("deadline")
    assert not spec.HasField("max_output_tokens")
    assert not spec.HasField("sampling")
    request = convert.route_request("sort", 3)
    assert not request.HasField("deadline")
    assert not request.HasField("max_output_tokens")


def test_what_is_said_arrives() -> None:
    """Every option is in the message, in its unit."""
    options: dict[str, Any] = {
        "deadline_s": 0.25, "max_output_tokens": 7, "quality_floor": 0.5, "tier": "small",
        "request_id": "mine", "conversation_id": "talk", "priority": "low",
    }  # fmt: skip
    spec = convert.generation_spec(
        "ab", task="sort", temperature=0.7, seed=0, slo_kind="per_token", token_interval_s=0.05,
        **options,
    )  # fmt: skip
    for message in (spec, convert.route_request("sort", 3, **options)):
        assert message.deadline.ToNanoseconds() == 250_000_000
        assert (message.max_output_tokens, message.quality_floor) == (7, 0.5)
        assert (message.tier, message.request_id, message.task) == ("small", "mine", "sort")
        assert message.conversation_id == "talk"
        assert message.priority == common_pb2.PRIORITY_LOW
    assert spec.slo_kind == common_pb2.SLO_KIND_PER_TOKEN
    assert spec.token_interval.ToNanoseconds() == 50_000_000
    assert spec.sampling.temperature == pytest.approx(0.7)
    assert spec.sampling.HasField("seed")


@pytest.mark.parametrize(
    ("stay", "word"), [(0, ""), (1, "new"), (2, "kept"), (6, "worth"), (99, "stay_99")]
)
def test_an_answer_says_what_became_of_its_conversation(stay: Any, word: str) -> None:
    """In one word, also of a router that knows more of them."""
    completion = pb.Completion(conversation_stay=stay, cached_prompt_token_count=32)
    answer = convert.answer_of(completion, "", "")
    assert (answer.conversation_stay, answer.cached_prompt_token_count) == (word, 32)


def test_an_unknown_priority_is_named_before_anything_is_sent() -> None:
    """With the classes there are."""
    with pytest.raises(ValueError, match="priority: must be high, normal or low, got 'urgent'"):
        convert.generation_spec("ab", task="sort", priority="urgent")
    with pytest.raises(TypeError, match="priority: must be a text"):
        convert.route_request("sort", 3, priority=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", sorted(convert.OUTCOME_STATUSES))
def test_every_outcome_has_its_value(status: str) -> None:
    """The word of the interface is the word of the contract."""
    request = convert.outcome_request(ticket=b"t", status=status, latency_s=0.5)
    assert common_pb2.OutcomeStatus.Name(request.status) == f"OUTCOME_STATUS_{status.upper()}"
    assert request.latency.ToNanoseconds() == 500_000_000
    assert not request.HasField("quality")


def test_what_may_be_reported_is_what_routers_take() -> None:
    """No more, as a router would refuse it, and no less."""
    assert set(convert.OUTCOME_STATUSES.values()) == set(REPORTED_OUTCOMES)
    assert list(convert.OUTCOME_STATUSES) == list(get_args(OutcomeStatus))
    with pytest.raises(ValueError, match="status: must be one of on_time, late, cancelled, failed"):
        convert.outcome_request(ticket=b"t", status="refused")


def test_feedback_goes_by_request_id() -> None:
    """Quality of an answer that was given needs no ticket."""
    request = convert.outcome_request(request_id="mine", quality=0.0)
    assert request.request_id == "mine"
    assert request.HasField("quality")


def test_an_answer_without_a_first_token_says_so() -> None:
    """Unset is None and not 0 seconds; reasons unknown here keep their number."""
    completion = pb.Completion(tier="small", step_down_reason=99)  # type: ignore[arg-type]
    answer = convert.answer_of(completion, "AB", "")
    assert answer.first_token_s is None
    assert answer.early_s is None
    assert answer.step_down == "reason_99"


def test_an_answer_says_where_its_time_went() -> None:
    """By how much it was late, too."""
    completion = pb.Completion(tier="small")
    completion.timings.early.FromMilliseconds(-1_500)
    for number, part in enumerate(("queue", "prefill", "decode", "hop"), start=1):
        getattr(completion.timings, part).FromMilliseconds(number)
    answer = convert.answer_of(completion, "AB", "")
    assert answer.early_s == -1.5
    parts_s = answer.queue_s, answer.prefill_s, answer.decode_s, answer.hop_s
    assert parts_s == (0.001, 0.002, 0.003, 0.004)
