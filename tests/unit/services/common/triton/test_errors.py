"""Why a tier did not answer: Triton's status and words as typed errors."""

from __future__ import annotations

import grpc
import pytest

from services.common.tiers.errors import (
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from services.common.triton.errors import error_of_status, error_of_text

UNHEALTHY = (
    "Failed to process the request(s) for model instance 'x_0', message: Stub process 'x_0_0' is "
    "not healthy."
)


@pytest.mark.parametrize(
    ("code", "detail", "error", "reason"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size 16", TierOverloadedError, "QUEUE_FULL"),
        ("UNAVAILABLE", "Request timeout expired", TierOverloadedError, "QUEUE_TIMEOUT"),
        ("UNAVAILABLE", "paced device is lost", TierUnavailableError, "UNAVAILABLE"),
        ("NOT_FOUND", "unknown model: 'x'", TierUnavailableError, "MODEL_NOT_FOUND"),
        ("INTERNAL", "stub process is not healthy", TierUnknownError, "TIER_FAILED"),
        ("UNKNOWN", "the prompt is not for us", TierUnknownError, "TIER_FAILED"),
        ("UNIMPLEMENTED", "no such method", TierUnavailableError, "UNIMPLEMENTED"),
        ("INVALID_ARGUMENT", "max_tokens", TierInvalidError, "INVALID_REQUEST"),
        ("DEADLINE_EXCEEDED", "", TierDeadlineError, "DEADLINE_EXCEEDED"),
        ("RESOURCE_EXHAUSTED", "too many", TierOverloadedError, "RESOURCE_EXHAUSTED"),
        (
            "RESOURCE_EXHAUSTED",
            "CLIENT: Received message larger than max (9 vs. 8)",
            TierUnavailableError,
            "BAD_ANSWER",
        ),
        ("CANCELLED", "", TierUnavailableError, "CANCELLED_BY_SERVER"),
    ],
)
def test_status_becomes_a_typed_error(
    code: str, detail: str, error: type[TierError], reason: str
) -> None:
    """Every status of Triton has its error, reason and detail."""
    found = error_of_status(grpc.StatusCode[code], detail)
    assert (type(found), found.reason) == (error, reason)
    assert detail in found.detail


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Exceeds maximum queue size", TierOverloadedError),
        ("Request for unknown model: 'x' is not found", TierUnavailableError),
        ("Request timeout expired", TierOverloadedError),
        ("[request id: ours-1] expected 4 inputs but got 3 inputs for model 'x'", TierInvalidError),
        ("[request id: ours-1] Request timeout expired", TierOverloadedError),
        ("queue is full: 16 requests wait", TierOverloadedError),
        (UNHEALTHY, TierUnavailableError),
        ("paced device is lost", TierUnavailableError),
        ("unexpected inference input 'y' for model 'x'", TierInvalidError),
        ("sampling_parameters.max_tokens: must be at least 1", TierInvalidError),
        ("text_input: must not be empty", TierInvalidError),
        ("max_tokens: 0 must be an integer in 1..16", TierInvalidError),
        ("the sampling_parameters: broke the model", TierUnknownError),
        ("something broke", TierUnknownError),
    ],
)
def test_text_without_a_status_is_typed(text: str, error: type[TierError]) -> None:
    """Triton's words tell a full queue, a bad request and a broken tier apart."""
    assert type(error_of_text(text, "ours-1")) is error


@pytest.mark.parametrize(
    "text",
    [
        "cannot answer 'timeout expired'",
        "cannot answer: Exceeds maximum queue size",
        "[request id: a]b] Request timeout expired",
        "[request id: ours-1]] Request timeout expired",
        "[request id: ours-12] text_input: too long",
        "Failed to process the request(s) for model instance 'x', message: Stub 'is not healthy'",
        "ValueError: unknown model: paced device is lost",
    ],
)
def test_a_caller_writes_no_words_of_triton(text: str) -> None:
    """Known words count where Triton begins its text, after the id that we sent, nowhere else."""
    assert type(error_of_text(text, "ours-1")) is TierUnknownError


def test_error_detail_is_one_short_line() -> None:
    """Tracebacks in a server's text do not reach the user."""
    error = TierUnavailableError("TIER_FAILED", "first\n  second " + "x" * 1000)
    assert "\n" not in str(error)
    assert len(error.detail) == 300
