"""Headers read in one pass."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidArgumentError, UnauthenticatedError
from services.openai_door.errors import HttpError
from services.openai_door.head import Head


def test_headers_that_mean_something_are_found() -> None:
    """Others are left alone."""
    head = Head.of(
        [
            (b"host", b"x"),
            (b"content-type", b"Application/JSON; charset=utf-8"),
            (b"content-length", b"12"),
            (b"authorization", b"Bearer k"),
            (b"x-request-id", b" r1 "),
            (b"traceparent", b"00-1-2-01"),
            (b"x-tiercel-task", b"chat"),
        ]
    )
    assert (head.content_type, head.content_length) == ("application/json", 12)
    assert (head.authorization, head.request_id) == ("Bearer k", "r1")
    assert (head.trace, head.own) == ([("traceparent", "00-1-2-01")], {"x-tiercel-task": "chat"})
    head.check_body(12)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "content-encoding": "gzip"}, 415),
        ({"content-type": "application/json", "content-length": "11"}, 413),
        ({"content-type": "application/json", "content-length": "9" * 400}, 413),
    ],
)
def test_a_body_that_is_none_for_this_door_is_refused_unread(
    headers: dict[str, str], status: int
) -> None:
    """By its type, its packing, or its length."""
    head = Head.of([(name.encode(), value.encode()) for name, value in headers.items()])
    with pytest.raises(HttpError) as caught:
        head.check_body(10)
    assert caught.value.status == status


def test_headers_that_cannot_be_are_refused() -> None:
    """What gRPC would not carry, and too many of them."""
    with pytest.raises(UnauthenticatedError):
        Head.of([(b"authorization", b"Bearer \xff")])
    with pytest.raises(InvalidArgumentError, match="x-request-id"):
        Head.of([(b"x-request-id", b"x" * 129)])
    with pytest.raises(HttpError) as caught:
        Head.of([(b"a", b"b")] * 1_000)
    assert caught.value.status == 431
