"""What went wrong, as OpenAI's clients expect to be told: status, and `{"error": {...}}`.

One table turns a gRPC status into one of HTTP, for what routers answer and for what is found wrong
here: this door raises the domain errors of `services.common.errors`, which have a gRPC status.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc
import grpc.aio

from services.common.errors import ErrorStatus, InvalidArgumentError, NotFoundError, status_of
from tiercel.errors import ErrorDetails, details_of, is_transport_failure

Headers = tuple[tuple[bytes, bytes], ...]

HTTP_OF_GRPC: Mapping[grpc.StatusCode, tuple[int, str]] = MappingProxyType(
    {
        grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
        grpc.StatusCode.OUT_OF_RANGE: (400, "invalid_request_error"),
        grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error"),
        grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
        grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
        grpc.StatusCode.NOT_FOUND: (404, "not_found_error"),
        grpc.StatusCode.ABORTED: (409, "conflict_error"),
        grpc.StatusCode.ALREADY_EXISTS: (409, "conflict_error"),
        grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
        grpc.StatusCode.CANCELLED: (503, "service_unavailable_error"),
        grpc.StatusCode.UNAVAILABLE: (503, "service_unavailable_error"),
        grpc.StatusCode.DEADLINE_EXCEEDED: (504, "deadline_error"),
        grpc.StatusCode.UNIMPLEMENTED: (501, "server_error"),
        grpc.StatusCode.DATA_LOSS: (500, "server_error"),
        grpc.StatusCode.INTERNAL: (500, "server_error"),
        grpc.StatusCode.UNKNOWN: (500, "server_error"),
    }
)
"""HTTP status and `error.type` of each gRPC status."""
STATUS_GONE = 499
"""Counted where the client left before its answer; nobody sees it."""
_NO_RETRY = (504,)
"""The client's time is over: its library shall not ask once more by itself."""


class HttpError(Exception):
    """Something wrong that has a status in HTTP alone.

    Args:
        status: HTTP status.
        code: UPPER_SNAKE_CASE word.
        message: One sentence for the caller.
        headers: Headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as it is answered.

    Attributes:
        status: HTTP status.
        kind: `error.type`.
        message: `error.message`.
        code: `error.code`, lower case; also the metric label.
        param: `error.param`, the field or header that is wrong; None if none is.
        retry_after_s: When trying again may work, seconds; None if unknown.
        headers: Further headers of the answer.
        is_bug: True if its traceback belongs in the log.
    """

    status: int
    kind: str
    message: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: Headers = ()
    is_bug: bool = False

    def body(self) -> bytes:
        """Returns the JSON text."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")

    def all_headers(self) -> Headers:
        """Returns its headers, without type and length."""
        found = list(self.headers)
        if self.retry_after_s is not None:
            found.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after_s))))
            # Whole seconds are long here; OpenAI's clients prefer this one.
            found.append((b"retry-after-ms", b"%d" % max(1, math.ceil(self.retry_after_s * 1e3))))
        if self.status in _NO_RETRY:
            found.append((b"x-should-retry", b"false"))
        return tuple(found)


def problem_of(error: BaseException, names: Mapping[str, str] = MappingProxyType({})) -> Problem:
    """Returns the answer to an error.

    Args:
        error: What was raised: of this door, or by a call to a router.
        names: This door's name of each field of the router's request.
    """
    if isinstance(error, HttpError):
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        code = error.code.lower()
        return Problem(error.status, kind, error.message, code, headers=error.headers)
    if isinstance(error, grpc.aio.AioRpcError):
        return _of_call(error, names)
    return _of_own(status_of(error), error)


def _of_own(found: ErrorStatus, error: BaseException) -> Problem:
    status, kind = HTTP_OF_GRPC[found.code]
    param = None
    if isinstance(error, InvalidArgumentError):
        param = error.field
    elif isinstance(error, NotFoundError):
        param = error.kind
    return Problem(
        status, kind, found.rich.message, found.reason.lower(), param,
        getattr(error, "retry_after_s", None), is_bug=found.is_bug,
    )  # fmt: skip


def _of_call(error: grpc.aio.AioRpcError, names: Mapping[str, str]) -> Problem:
    if is_transport_failure(error):
        # The library's text names addresses.
        status, kind = HTTP_OF_GRPC[grpc.StatusCode.UNAVAILABLE]
        return Problem(status, kind, "no router can be reached", "no_router", retry_after_s=1.0)
    details = details_of(error)
    status, kind = HTTP_OF_GRPC.get(error.code(), HTTP_OF_GRPC[grpc.StatusCode.UNKNOWN])
    if not details.reason and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Problem(status, kind, "no router answered in time", "no_answer")
    code = (details.reason or error.code().name).lower()
    text = (error.details() if details.reason else None) or code.replace("_", " ")
    param, message = _named(text, details, names)
    return Problem(status, kind, message, code, param, details.retry_delay_s)


def _named(text: str, details: ErrorDetails, names: Mapping[str, str]) -> tuple[str | None, str]:
    """Returns field and text of an error in this door's names."""
    violations = [(names.get(field, field), what) for field, what in details.field_violations]
    if violations:
        return violations[0][0], "; ".join(f"{field}: {what}" for field, what in violations)
    kind = details.metadata.get("kind")
    return (names.get(f"spec.{kind}") if kind else None), text
