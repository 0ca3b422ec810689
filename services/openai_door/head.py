"""The head of a request: the headers that mean something here, read in one pass."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.errors import InvalidArgumentError, UnauthenticatedError
from services.common.openai.wishes import HEADER_PREFIX
from services.openai_door.errors import HttpError

MAX_REQUEST_ID_CHARACTERS = 128
_JSON = "application/json"
_TRACE = (b"traceparent", b"tracestate")
_PREFIX = HEADER_PREFIX.encode()
_MOST_HEADERS = 200
_LENGTH_DIGITS = 12


@dataclass(slots=True)
class Head:
    """Headers of one request.

    Attributes:
        content_type: Media type of the body, without parameters.
        content_encoding: How it is packed; empty or `identity` for not at all.
        content_length: Its bytes as stated; None if not stated.
        expects_continue: True if the body comes only once it is asked for.
        host: By which name it was asked; empty if not told.
        authorization: Key or token, as it came; empty for none.
        request_id: The client's id for the request; empty for none.
        trace: W3C trace context.
        own: Headers of our own.
    """

    content_type: str = ""
    content_encoding: str = ""
    content_length: int | None = None
    expects_continue: bool = False
    host: str = ""
    authorization: str = ""
    request_id: str = ""
    trace: list[tuple[str, str]] = field(default_factory=list)
    own: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]]) -> Head:
        """Reads headers as ASGI has them, names in lower case.

        Raises:
            InvalidArgumentError: Names the header that is wrong.
            UnauthenticatedError: A key or token that no key can be.
            HttpError: There are too many.
        """
        head = cls()
        for count, (name, raw) in enumerate(headers):
            if count >= _MOST_HEADERS:
                raise HttpError(431, "HEADERS_TOO_LARGE", f"more than {_MOST_HEADERS} headers")
            value = raw.decode("latin-1").strip()
            if name == b"content-type":
                head.content_type = value.partition(";")[0].strip().lower()
            elif name == b"content-encoding":
                head.content_encoding = value.lower()
            elif name == b"content-length" and value.isdecimal():
                # What is longer is too large whatever it says.
                head.content_length = int(value[:_LENGTH_DIGITS])
            elif name == b"expect":
                head.expects_continue = True
            elif name == b"authorization":
                head.authorization = _authorization(value)
            elif name == b"x-request-id":
                head.request_id = _request_id(value)
            elif name == b"host":
                head.host = value
            elif name in _TRACE:
                head.trace.append((name.decode(), value))
            elif name.startswith(_PREFIX):
                head.own[name.decode("latin-1")] = value
        return head

    def check_body(self, most_bytes: int) -> None:
        """Refuses a body that is no JSON, or too large, before it is read.

        A page in a browser can send other types to any address without asking first.

        Raises:
            HttpError: By what is wrong.
        """
        if self.content_type != _JSON:
            got = f"not {self.content_type[:64]!r}" if self.content_type else "and is missing"
            raise HttpError(415, "UNSUPPORTED_MEDIA_TYPE", f"content-type must be {_JSON}, {got}")
        if self.content_encoding not in ("", "identity"):
            text = f"content-encoding {self.content_encoding[:64]!r} is not served here"
            raise HttpError(415, "UNSUPPORTED_ENCODING", text)
        if self.content_length is not None and self.content_length > most_bytes:
            raise body_too_large(most_bytes)


def body_too_large(most_bytes: int) -> HttpError:
    """Returns the error of a body beyond its limit; what is left of it is not read."""
    text = f"the body has more than {most_bytes} bytes (limit: openai_door.max_body_bytes)"
    return HttpError(413, "BODY_TOO_LARGE", text, ((b"connection", b"close"),))


def _authorization(value: str) -> str:
    # What gRPC would not carry cannot be a key.
    if not value.isascii() or not value.isprintable():
        raise UnauthenticatedError("the key or token is not known here", reason="BAD_CREDENTIALS")
    return value


def _request_id(value: str) -> str:
    if len(value) > MAX_REQUEST_ID_CHARACTERS or not value.isascii() or not value.isprintable():
        limit = f"at most {MAX_REQUEST_ID_CHARACTERS} characters of ASCII"
        raise InvalidArgumentError("x-request-id", "is too long or has other characters", limit)
    return value
