"""Errors the client raises, made from gRPC statuses and their google.rpc details."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

STATUS_DETAILS_KEY = "grpc-status-details-bin"
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


class ServerError(TiercelError):
    """The router failed in a way that is not the caller's doing."""


_BY_CODE: Mapping[grpc.StatusCode, type[TiercelError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: UnknownNameError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RefusedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineMissedError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.ABORTED: PreconditionError,
    grpc.StatusCode.ALREADY_EXISTS: PreconditionError,
}

_BROKEN_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def parse_details(trailing_metadata: Sequence[tuple[str, str | bytes]]) -> ErrorDetails:
    """Reads the google.rpc details out of trailing metadata; unreadable ones count as none."""
    raw = next((value for key, value in trailing_metadata if key == STATUS_DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return ErrorDetails()
    try:
        status = status_pb2.Status.FromString(raw)
        return _unpack(status)
    except DecodeError:
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


def from_rpc_error(error: grpc.aio.AioRpcError) -> TiercelError:
    """Turns a gRPC failure into the error of its status code."""
    return from_status(error.code(), error.details() or "", error.trailing_metadata())


def from_status(code: grpc.StatusCode, message: str, trailing_metadata: object) -> TiercelError:
    """Makes the error of a status code from what a failed call carries."""
    details = parse_details(_pairs(trailing_metadata))
    kind = _BY_CODE.get(code, ServerError)
    if _broke_off(code, details):
        kind = UnavailableError
    return kind(code, message or "no message", details)


def is_transport_failure(error: grpc.aio.AioRpcError) -> bool:
    """Says whether the router was not reached or broke off, so that another router may be tried.

    A router that answers UNAVAILABLE for the mesh's own reasons names one in ErrorInfo. CANCELLED
    comes from the other side only (a call cancelled here raises CancelledError): gRPC's server ends
    so what arrives in the instant in which it stops.
    """
    return _broke_off(error.code(), parse_details(_pairs(error.trailing_metadata())))


def _broke_off(code: grpc.StatusCode, details: ErrorDetails) -> bool:
    return code in _BROKEN_OFF and not details.reason


def _pairs(metadata: object) -> list[tuple[str, str | bytes]]:
    if metadata is None:
        return []
    return [(str(key), value) for key, value in metadata]  # type: ignore[attr-defined]
