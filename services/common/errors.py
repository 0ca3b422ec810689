"""Domain errors of the services, and the one table that turns them into gRPC status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.times import set_duration

ERROR_DOMAIN = "tiercel"
_MOST_NAMES_LISTED = 32


class DomainError(Exception):
    """Base of every error a servicer may raise on purpose.

    Args:
        message: One sentence for the caller; never holds secrets or a traceback.
        reason: UPPER_SNAKE_CASE word for `ErrorInfo.reason` and metric labels; few distinct values.
        metadata: Facts for `ErrorInfo.metadata`.
    """

    default_reason = "INTERNAL"

    def __init__(
        self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})

    def details(self) -> Iterable[Message]:
        """Yields detail messages beside the ErrorInfo."""
        return ()


class InvalidArgumentError(DomainError):
    """A field of the request is wrong.

    Args:
        field: Path of the field in the request message, e.g. `spec.prompt`.
        problem: What is wrong with it.
        limit: What would be right, e.g. `1 to 65536 bytes`.
        more: Further (field, problem) pairs found in the same request.
    """

    default_reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        field: str,
        problem: str,
        limit: str = "",
        *,
        reason: str | None = None,
        more: Iterable[tuple[str, str]] = (),
    ) -> None:
        text = f"{problem} (limit: {limit})" if limit else problem
        self.violations = ((field, text), *more)
        message = "; ".join(f"{name}: {what}" for name, what in self.violations)
        metadata = {"field": field} | ({"limit": limit} if limit else {})
        super().__init__(message, reason=reason, metadata=metadata)
        self.field = field

    def details(self) -> Iterable[Message]:
        """Yields a BadRequest with every violation."""
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=name, description=what)
                for name, what in self.violations
            ]
        )


class NotFoundError(DomainError):
    """A named thing does not exist.

    Args:
        kind: What it would be: `task`, `tier`, `endpoint`, `policy`, ...
        name: The name asked for.
        known: The names that do exist.
    """

    default_reason = "NOT_FOUND"

    def __init__(self, kind: str, name: str, known: Iterable[str] = ()) -> None:
        names = list(known)
        shown = ", ".join(names[:_MOST_NAMES_LISTED])
        if len(names) > _MOST_NAMES_LISTED:
            shown += f", and {len(names) - _MOST_NAMES_LISTED} more"
        message = f"unknown {kind} {name!r}" + (f"; known: {shown}" if names else "")
        metadata = {"kind": kind, "name": name} | ({"known": shown} if names else {})
        super().__init__(
            message, reason=f"{kind.upper().replace(' ', '_')}_NOT_FOUND", metadata=metadata
        )
        self.kind = kind
        self.name = name


class ResourceExhaustedError(DomainError):
    """A limit is reached and the request was refused before any work.

    Args:
        reason: Which limit, e.g. `DEADLINE_NOT_REACHABLE`.
        limit: The limit's value with its unit.
        measured: The measured value with its unit.
        retry_after_s: When trying again may work, seconds; None if unknown.
        metadata: Further facts for `ErrorInfo.metadata`.
    """

    default_reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        reason: str,
        limit: str,
        measured: str,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        message = (
            f"refused: {reason.lower().replace('_', ' ')} (limit {limit}, measured {measured})"
        )
        facts = {"limit": limit, "measured": measured, **(metadata or {})}
        super().__init__(message, reason=reason, metadata=facts)
        self.retry_after_s = retry_after_s

    def details(self) -> Iterable[Message]:
        """Yields a RetryInfo if the time is known."""
        if self.retry_after_s is not None:
            yield _retry_info(self.retry_after_s)


class UnavailableError(DomainError):
    """Something that is needed is not there at present.

    Args:
        reason: What, e.g. `NO_USABLE_ENDPOINT`.
        message: One sentence; made from the reason if not given.
        retry_after_s: When trying again may work, seconds; None if unknown.
    """

    default_reason = "UNAVAILABLE"

    def __init__(
        self,
        reason: str,
        message: str | None = None,
        *,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        text = message or reason.lower().replace("_", " ")
        super().__init__(text, reason=reason, metadata=metadata)
        self.retry_after_s = retry_after_s

    def details(self) -> Iterable[Message]:
        """Yields a RetryInfo if the time is known."""
        if self.retry_after_s is not None:
            yield _retry_info(self.retry_after_s)


class FailedPreconditionError(DomainError):
    """The thing asked for is in the wrong state; trying again without a change will not help."""

    default_reason = "FAILED_PRECONDITION"


class AbortedError(DomainError):
    """Somebody else changed it first; read again and retry."""

    default_reason = "VERSION_MISMATCH"


class AlreadyExistsError(DomainError):
    """The name is taken by something different.

    Args:
        kind: What it is.
        name: The name.
        problem: How the existing one differs.
    """

    default_reason = "ALREADY_EXISTS"

    def __init__(
        self, kind: str, name: str, problem: str = "exists with a different definition"
    ) -> None:
        super().__init__(
            f"{kind} {name!r} {problem}",
            reason=f"{kind.upper().replace(' ', '_')}_ALREADY_EXISTS",
            metadata={"kind": kind, "name": name},
        )


class DeadlineExceededError(DomainError):
    """The deadline passed before there was an answer."""

    default_reason = "DEADLINE_EXCEEDED"


STATUS_BY_ERROR: Mapping[type[BaseException], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    AbortedError: grpc.StatusCode.ABORTED,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    StateUnavailableError: grpc.StatusCode.UNAVAILABLE,
    VersionMismatchError: grpc.StatusCode.ABORTED,
    # What generated servicer bases raise for a method nobody wrote.
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
}


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """A gRPC status with rich details.

    Args:
        code: Status code, never UNKNOWN.
        reason: Reason of its ErrorInfo; the metric label.
        rich: The `google.rpc.Status` with text and details for the caller.
        is_bug: True if the error was not a domain error; its traceback belongs in the log.
    """

    code: grpc.StatusCode
    reason: str
    rich: status_pb2.Status
    is_bug: bool


def status_of(error: BaseException) -> ErrorStatus:
    """Returns the status of an error by the table; anything not in it is a bug: INTERNAL."""
    for kind in type(error).__mro__:
        if kind in STATUS_BY_ERROR:
            code = STATUS_BY_ERROR[kind]
            if isinstance(error, DomainError):
                return _status(code, error.reason, error.message, error.metadata, error.details())
            if isinstance(error, StateUnavailableError):
                # Its text names hosts; the caller only needs to know what is missing.
                return _status(code, "STATE_UNAVAILABLE", "the mesh's state store is unavailable")
            if isinstance(error, VersionMismatchError):
                return _status(code, AbortedError.default_reason, str(error))
            return _status(code, "METHOD_NOT_IMPLEMENTED", "method not implemented")
    return _status(grpc.StatusCode.INTERNAL, "INTERNAL", "internal error", is_bug=True)


def _status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    metadata: Mapping[str, str] | None = None,
    details: Iterable[Message] = (),
    *,
    is_bug: bool = False,
) -> ErrorStatus:
    info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata)
    rich = status_pb2.Status(code=code.value[0], message=message)
    for detail in (info, *details):
        rich.details.add().Pack(detail)
    return ErrorStatus(code, reason, rich, is_bug)


def _retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    set_duration(info.retry_delay, retry_after_s)
    return info
