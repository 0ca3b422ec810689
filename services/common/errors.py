"""Domain errors of the services, and the one table that turns them into gRPC status.

An answer's size is bounded whatever the request held: gRPC carries status and details as header
fields, of which a client takes 8 KiB, and breaks the call beyond. So at most `MAX_VIOLATIONS`
mistakes are named, and every text is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.common.state.errors import StateUnavailableError, VersionMismatchError
from services.common.times import set_duration

ERROR_DOMAIN = "tiercel"
MAX_VIOLATIONS = 20
"""Most mistakes of one request that are answered; checking stops there."""
# A message may come percent-encoded (three times as long) and once more inside the details, which
# are base64: together these stay below 8 KiB.
_MOST_MESSAGE_BYTES = 800
_MOST_VIOLATIONS_BYTES = 2_000
_MOST_TEXT_BYTES = 200
_MOST_NAME_BYTES = 64
_MOST_METADATA_COUNT = 8
_MOST_NAMES_LISTED = 32
_MOST_LISTED_BYTES = 400


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
        more: Further (field, problem) pairs found in the same request; what goes beyond
            `MAX_VIOLATIONS` is left out.
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
        violations = [(field, with_limit(problem, limit)), *islice(more, MAX_VIOLATIONS - 1)]
        self.violations = tuple(_within_budget(violations))
        message = "; ".join(f"{name}: {what}" for name, what in self.violations)
        metadata = {"field": field} | ({"limit": limit} if limit else {})
        super().__init__(message, reason=reason, metadata=metadata)
        self.field = field

    def details(self) -> Iterable[Message]:
        """Yields a BadRequest with the violations."""
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
        name = cut(name, _MOST_NAME_BYTES)
        names = list(known)
        listed = names[:_MOST_NAMES_LISTED]
        while listed and len(", ".join(listed).encode()) > _MOST_LISTED_BYTES:
            listed.pop()
        shown = ", ".join(listed)
        if len(names) > len(listed):
            shown += f", and {len(names) - len(listed)} more"
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


class NotServedError(DomainError):
    """A method of a protocol that is spoken here in part; the message says why not in whole."""

    default_reason = "NOT_SERVED"


class UnauthenticatedError(DomainError):
    """Nobody can tell who calls; the message never says which part of a secret was wrong."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(DomainError):
    """The caller is known, and may not make this call."""

    default_reason = "PERMISSION_DENIED"


STATUS_BY_ERROR: Mapping[type[BaseException], grpc.StatusCode] = {
    InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    AbortedError: grpc.StatusCode.ABORTED,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    NotServedError: grpc.StatusCode.UNIMPLEMENTED,
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
    facts = islice((metadata or {}).items(), _MOST_METADATA_COUNT)
    info = error_details_pb2.ErrorInfo(
        reason=reason,
        domain=ERROR_DOMAIN,
        metadata={key: cut(value, _MOST_LISTED_BYTES) for key, value in facts},
    )
    rich = status_pb2.Status(code=code.value[0], message=cut(message, _MOST_MESSAGE_BYTES))
    for detail in (info, *details):
        rich.details.add().Pack(detail)
    return ErrorStatus(code, reason, rich, is_bug)


def with_limit(problem: str, limit: str) -> str:
    """Returns what is wrong together with what would be right."""
    return f"{problem} (limit: {limit})" if limit else problem


def cut(text: str, most_bytes: int) -> str:
    """Returns a text of at most `most_bytes` bytes of UTF-8, with `...` where it was cut."""
    # A character has one to four bytes: what is far too long is not encoded as a whole.
    head = text[: most_bytes + 1].encode("utf-8", "replace")
    if len(text) <= most_bytes and len(head) <= most_bytes:
        return text
    return head[: most_bytes - 3].decode("utf-8", "ignore") + "..."


def _within_budget(violations: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yields violations, each cut, as long as all of them together stay small."""
    left = _MOST_VIOLATIONS_BYTES
    for field, text in violations:
        short = cut(field, _MOST_TEXT_BYTES), cut(text, _MOST_TEXT_BYTES)
        left -= sum(len(part.encode()) for part in short)
        if left < 0:
            return
        yield short


def _retry_info(retry_after_s: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    set_duration(info.retry_delay, retry_after_s)
    return info
