"""Why a tier did not answer."""

from __future__ import annotations

import re

import grpc

QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
"""Reason of an answer that the tier ended at the request's timeout."""
_OVERLOAD_TEXTS = ("timeout expired", "timed out in queue")
# Triton's own words for a request that does not fit the model's inputs, and the form in which the
# mesh's tiers refuse one: the field, a colon, what is wrong with it.
_INVALID_TEXT = re.compile(
    r"^(\[request id: [^\]]*\] )?"
    r"((text_input|stream|exclude_input_in_output|return_\w+|sampling_parameters)(\.\w+)?: "
    r"|(max_tokens|temperature|seed|top_k|top_p): "
    r"|inference (request|input) |unexpected |expected \d+ inputs|input .* expected)"
)


class TierError(Exception):
    """A tier did not answer a request.

    Attributes:
        reason: Upper-case token for metric labels and `ErrorInfo.reason`.
        detail: What the server said, one line, at most 300 characters.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keeps the reason beside the text; `detail` is cut to one short line."""
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]
        super().__init__(f"{reason}: {self.detail}")


class TierUnavailableError(TierError):
    """The endpoint is gone, or the tier on it is not loaded, lost or broken: try another one."""


class TierOverloadedError(TierError):
    """The tier's own queue was full, or the request waited in it for too long."""


class TierDeadlineError(TierError):
    """The deadline of the call passed before the answer was complete."""


class TierInvalidError(TierError):
    """The tier refused the request itself: sending it elsewhere would not help."""


def error_of_status(code: grpc.StatusCode, detail: str) -> TierError:
    """Maps a gRPC status of Triton to a typed error.

    Triton answers UNAVAILABLE both when a queue is full or was waited in for too long, and when
    the model or the whole server is gone; only the text tells them apart.
    """
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TierDeadlineError("DEADLINE_EXCEEDED", detail or "deadline exceeded")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return TierInvalidError("INVALID_REQUEST", detail)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC's own limit on message sizes has this code too, and no other endpoint helps there.
        if "message" in detail and "larger" in detail:
            return TierInvalidError("MESSAGE_TOO_LARGE", detail)
        return TierOverloadedError("RESOURCE_EXHAUSTED", detail)
    if code is grpc.StatusCode.NOT_FOUND:
        return TierUnavailableError("MODEL_NOT_FOUND", detail)
    if code is grpc.StatusCode.UNAVAILABLE:
        return error_of_text(detail, known_unavailable=True)
    if code is grpc.StatusCode.CANCELLED:
        return TierUnavailableError("CANCELLED_BY_SERVER", detail or "the server cancelled")
    return TierUnavailableError("TIER_FAILED", f"{code.name}: {detail}")


def error_of_text(text: str, *, known_unavailable: bool = False) -> TierError:
    """Maps the bare text of an error inside a stream, where Triton sends no status."""
    lowered = text.lower()
    if "maximum queue size" in lowered:
        return TierOverloadedError("QUEUE_FULL", text)
    if any(part in lowered for part in _OVERLOAD_TEXTS):
        return TierOverloadedError(QUEUE_TIMEOUT, text)
    if known_unavailable:
        return TierUnavailableError("UNAVAILABLE", text)
    if _INVALID_TEXT.match(text):
        return TierInvalidError("INVALID_REQUEST", text)
    if "unknown model" in lowered:
        return TierUnavailableError("MODEL_NOT_FOUND", text)
    return TierUnavailableError("TIER_FAILED", text)
