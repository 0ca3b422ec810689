"""What a gateway is answered: where a request goes, and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.router_inference.doors.envoy import replies
from tests.unit.services.router_inference.doors.envoy.gateway import destinations, set_headers
from tiercel.envoy.v3 import external_processor_pb2 as pb2


def test_metadata_is_told_only_if_there_is_any() -> None:
    """A namespace without a value would be no metadata."""
    plain = replies.sent_to(["10.0.0.1:1", "10.0.0.2:1"])
    assert destinations(plain) == ["10.0.0.1:1", "10.0.0.2:1"]
    assert "tiercel" not in plain.dynamic_metadata.fields
    told = replies.sent_to(["10.0.0.1:1"], told=[("policy", "price")])
    assert told.dynamic_metadata.fields["tiercel"].struct_value["policy"] == "price"


def test_what_answers_have_in_common_takes_nothing_from_one_to_the_next() -> None:
    """Each has its own headers beside it; an address that stands twice is named once."""
    stops = (
        replies.Stop("10.0.0.1:1", "large", "e0"),
        replies.Stop("10.0.0.2:1", "large", "e1"),
        replies.Stop("10.0.0.1:1", "small", "e0"),
    )
    chosen = replies.Chosen(stops, "llm", "price", "price@1", False, "request_headers")
    first, second = (
        pb2.ProcessingResponse.FromString(replies.sent_on(chosen, [(name, "1")], [("own", name)]))
        for name in ("x-one", "x-two")
    )
    for answer, own in ((first, "x-one"), (second, "x-two")):
        assert destinations(answer) == ["10.0.0.1:1", "10.0.0.2:1"]
        told = set_headers(answer)
        assert told.keys() & {"x-one", "x-two"} == {own}
        assert told["own"] == own
        assert (told["x-tiercel-model"], told["x-tiercel-tier"]) == ("llm", "large")
        assert told["x-envoy-max-retries"] == "1"
        fields = answer.dynamic_metadata.fields["tiercel"].struct_value
        assert (fields["policy_version"], fields["tier 10.0.0.1:1"]) == ("price@1", "large")
        assert fields["endpoint 10.0.0.2:1"] == "e1"


def test_a_timeout_is_never_zero() -> None:
    """Envoy would take that for no timeout at all."""
    assert [replies.timeout_ms(each) for each in (-1.0, 0.0, 0.0004, 1.2341)] == [
        "1", "1", "1", "1235",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidArgumentError("task", "is empty"), 400),
        (InvalidArgumentError("prompt_bytes", "is 9", "0 to 8"), 413),
        (ResourceExhaustedError("FULL", "1", "2", 0.2), 429),
        (UnavailableError("NONE", retry_after_s=3.2), 503),
        (InvalidArgumentError("request", "is large", reason="MESSAGE_TOO_LARGE"), 413),
        (DeadlineExceededError("late"), 408),
        (FailedPreconditionError("is wrong"), 500),
    ],
)
def test_errors_have_a_status_and_tritons_form(error: Any, status: int) -> None:
    """The field is named as the client knows it."""
    answer = replies.refusal(error).immediate_response
    assert answer.status.code == status
    text = json.loads(answer.body)["error"]
    if isinstance(error, InvalidArgumentError):
        assert text.startswith(("x-tiercel-task", "content-length", "request"))
    told = {each.header.key: each.header.raw_value for each in answer.headers.set_headers}
    assert told.get("retry-after") == {429: b"1", 503: b"4"}.get(status)
