"""Errors the client raises, made from gRPC statuses and their google.rpc details."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

TRANSPORT_REASON = "TRANSPORT"
"""Reason of a failure without ErrorInfo: the router was not reached, or it broke off."""


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a server said about a failure beyond its status code.

    Attributes:
        reason: ``ErrorInfo.reason``, empty if the server gave none.
        metadata: ``ErrorInfo.metadata``, for instance the limit and the measured value.
        retry_delay_s: ``RetryInfo.retry_delay`` in seconds, None if the server gave none.
        field_violations: Pairs of field and description from ``BadRequest``.
    """

    reason: str = ""
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    retry_delay_s: float | None = None
    field_violations: tuple[tuple[str, str], ...] = ()


class TiercelError(Exception):
    """A call to the mesh that failed.

    Attributes:
        code: gRPC status code.
        reason: Machine-readable reason; ``TRANSPORT`` if the router was not reached.
        details: What else the server said.
    """

    def __init__(self, code: grpc.StatusCode, message: str, details: ErrorDetails) -> None:
        """Builds the error; the text is the server's message with code and reason before it."""
        self.code = code
        self.details = details
        self.reason = details.reason or TRANSPORT_REASON
        super().__init__(f"{code.name} ({self.reason}): {message}")

    @property
    def retry_delay_s(self) -> float | None:
        """Seconds to wait before a retry, None if the server gave none."""
        return self.details.retry_delay_s


class InvalidRequestError(TiercelError):
    """The request is wrong; ``details.field_violations`` names the fields."""


class UnknownNameError(TiercelError):
    """A task, tier, policy, endpoint or request id that the mesh does not know."""


class RefusedError(TiercelError):
    """The mesh refused at once: no tier could make the deadline, or a limit is reached."""


class UnavailableError(TiercelError):
    """No router, or no endpoint behind it, can answer now."""


class DeadlineMissedError(TiercelError):
    """The deadline passed before the answer was complete; the work was cancelled."""


class RequestCancelledError(TiercelError):
    """The mesh cancelled the call before its end."""


class PreconditionError(TiercelError):
    """The call does not fit the present state, for instance a closed ticket."""


class NotAllowedError(TiercelError):
    """The mesh does not know the caller, or the caller may not make this call."""


class ServerError(TiercelError):
    """The router failed in a way that is not the caller's doing."""


class ClientUnusableError(TiercelError):
    """This client cannot make the call, or was closed while the call was under way.

    Its ``reason`` is ``CLIENT_CLOSED``, ``FORKED`` (made before this process was forked off),
    ``FORKED_WHILE_OPEN`` (another one was open then, which gRPC does not survive: none can be made
    in this process) or ``OTHER_LOOP`` (an AsyncClient belongs to the event loop that ran when
    it was made, or, if none did, to that of its first call). Processes that are forked make a
    client each, and before the fork none is open; those that are spawned are free to.
    """


_BY_CODE: Mapping[grpc.StatusCode, type[TiercelError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: UnknownNameError,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowedError,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineMissedError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ABORTED: PreconditionError,
    grpc.StatusCode.ALREADY_EXISTS: PreconditionError,
}

_BROKEN_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


_UNUSABLE: Mapping[str, str] = {
    "CLIENT_CLOSED": "the client is closed",
    "FORKED": "the client was made before this process was forked off; close it before, and make"
    " one in each process",
    "FORKED_WHILE_OPEN": "a client was open when this process was forked off, which gRPC does not"
    " survive; close it before, or have processes spawned",
    "OTHER_LOOP": "the client belongs to another event loop; make one in each loop",
}


def unusable(reason: str) -> ClientUnusableError:
    """Returns the error of a client that cannot make a call."""
    code = grpc.StatusCode.FAILED_PRECONDITION
    return ClientUnusableError(code, _UNUSABLE[reason], ErrorDetails(reason=reason))


def unanswered() -> DeadlineMissedError:
    """Returns the error of a call whose time is over though gRPC has not ended it."""
    return DeadlineMissedError(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "no answer in time, and none from gRPC: does the event loop still run?",
        ErrorDetails(reason="CLIENT_STALLED"),
    )


def unreadable() -> ServerError:
    """Returns the error of a call that was answered with what is no message of ours."""
    return ServerError(
        grpc.StatusCode.INTERNAL,
        "the answer cannot be read",
        ErrorDetails(reason="UNREADABLE_ANSWER"),
    )


def details_of(error: Any) -> ErrorDetails:
    """Reads the google.rpc details of a failed call; unreadable ones count as none."""
    try:
        status = rpc_status.from_call(error)
        return _unpack(status) if status is not None else ErrorDetails()
    except (DecodeError, ValueError, OverflowError):  # the last for a delay of thousands of years
        return ErrorDetails()


def _unpack(status: status_pb2.Status) -> ErrorDetails:
    reason, metadata, retry_delay_s = "", dict[str, str](), None
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(retry):
            retry_delay_s = retry.retry_delay.ToTimedelta().total_seconds()
        elif detail.Unpack(bad):
            violations += [(each.field, each.description) for each in bad.field_violations]
    return ErrorDetails(reason, metadata, retry_delay_s, tuple(violations))


def from_rpc_error(error: Any) -> TiercelError:
    """Turns a gRPC failure (of grpc or grpc.aio) into the error of its status code."""
    code, details = error.code(), details_of(error)
    kind = UnavailableError if _broke_off(code, details) else _BY_CODE.get(code, ServerError)
    return kind(code, error.details() or "no message", details)


def is_transport_failure(error: grpc.aio.AioRpcError) -> bool:
    """Says whether the router was not reached or broke off, so that another router may be tried.

    A router that answers UNAVAILABLE for the mesh's own reasons names one in ErrorInfo. CANCELLED
    comes from the other side only (a call cancelled here raises CancelledError): gRPC's server ends
    so what arrives in the instant in which it stops.
    """
    return _broke_off(error.code(), details_of(error))


def is_silence(error: grpc.aio.AioRpcError) -> bool:
    """Says whether the caller's own time limit ended the call: the router has answered nothing.

    A router answers before that, late requests included. One that does not is stopped, cut off or
    hopelessly behind.
    """
    return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and not details_of(error).reason


def _broke_off(code: grpc.StatusCode, details: ErrorDetails) -> bool:
    return code in _BROKEN_OFF and not details.reason
