"""What Triton says when a tier does not answer, as errors."""

from __future__ import annotations

import re

import grpc

from services.common.tiers.errors import (
    BAD_ANSWER,
    QUEUE_TIMEOUT,
    REASON_DEADLINE,
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)

# What Triton 2.51 and the mesh's own tiers say, as their texts begin. What a text goes on with may
# come from a caller's prompt, so nothing is looked for there.
_QUEUE_FULL = re.compile(r"Exceeds maximum queue size|queue is full: \d+ requests wait")
_QUEUE_TIMEOUT = re.compile(r"Request timeout expired")
_MODEL_GONE = re.compile(r"(Request for )?unknown model: ")
_TIER_GONE = re.compile(
    r"Failed to process the request\(s\) for model instance '[\w.-]+', message: "
    r"Stub process '[\w.-]+' is not healthy"
    r"|paced device is lost|the model is being unloaded|internal error in the engine"
)
# Triton's own words for a request that does not fit the model's inputs, and the form in which the
# mesh's tiers refuse one: the field, a colon, what is wrong with it.
_INVALID = re.compile(
    r"(text_input|stream|exclude_input_in_output|return_\w+|sampling_parameters)(\.\w+)?: "
    r"|(max_tokens|temperature|seed|top_k|top_p): "
    r"|inference (request|input) |unexpected |expected \d+ inputs|input .* expected"
)
# Status of a server that is no Triton, or not one for us.
_NO_TRITON = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
# The words of gRPC on our own side for a message that is larger than our limit, or packed.
_ANSWER_TOO_LARGE = re.compile(r"(Stream removed \()?CLIENT: Received message larger than max")
_ANSWER_PACKED = re.compile(r"Compression algorithm not supported: ")


def error_of_status(code: grpc.StatusCode, detail: str) -> TierError:
    """Maps a gRPC status to a typed error.

    Triton gives a status to what is wrong with the call or the server; what is wrong with one
    request of a stream comes as a text (`error_of_text`). It answers UNAVAILABLE both when a queue
    is full or was waited in for too long, and when the model or the whole server is gone.
    """
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TierDeadlineError(REASON_DEADLINE, detail or "deadline exceeded")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return TierInvalidError("INVALID_REQUEST", detail)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if _ANSWER_TOO_LARGE.match(detail):
            return TierUnavailableError(BAD_ANSWER, detail)
        return TierOverloadedError("RESOURCE_EXHAUSTED", detail)
    if code is grpc.StatusCode.NOT_FOUND:
        return TierUnavailableError("MODEL_NOT_FOUND", detail)
    if code is grpc.StatusCode.UNAVAILABLE:
        return _overload_of(detail) or TierUnavailableError("UNAVAILABLE", detail)
    if code is grpc.StatusCode.CANCELLED:
        return TierUnavailableError("CANCELLED_BY_SERVER", detail or "the server cancelled")
    if code is grpc.StatusCode.INTERNAL and _ANSWER_PACKED.match(detail):
        return TierUnavailableError(BAD_ANSWER, detail)
    if code in _NO_TRITON:
        return TierUnavailableError(code.name, detail)
    return TierUnknownError("TIER_FAILED", f"{code.name}: {detail}")


def error_of_text(text: str, request_id: str = "") -> TierError:
    """Maps the bare text of an error inside a stream, where Triton sends no status.

    Args:
        text: What Triton or the model said. Parts of it may come from the caller's prompt.
        request_id: The id that was sent with the request, of our own making; Triton puts it before
            some of its texts.
    """
    bare = text.removeprefix(f"[request id: {request_id}] ")
    if error := _overload_of(bare):
        return error
    if _INVALID.match(bare):
        return TierInvalidError("INVALID_REQUEST", bare)
    if _MODEL_GONE.match(bare):
        return TierUnavailableError("MODEL_NOT_FOUND", bare)
    if _TIER_GONE.match(bare):
        return TierUnavailableError("UNAVAILABLE", bare)
    return TierUnknownError("TIER_FAILED", bare)


def _overload_of(text: str) -> TierOverloadedError | None:
    if _QUEUE_FULL.match(text):
        return TierOverloadedError("QUEUE_FULL", text)
    return TierOverloadedError(QUEUE_TIMEOUT, text) if _QUEUE_TIMEOUT.match(text) else None
