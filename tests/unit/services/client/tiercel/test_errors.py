"""What a failed call says."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from tests.fakes.router import FakeRouter, abort, serve
from tiercel import (
    AsyncClient,
    InvalidRequestError,
    RefusedError,
    UnavailableError,
    UnknownNameError,
)


async def test_refusals_carry_reason_and_retry_delay() -> None:
    """ErrorInfo and RetryInfo arrive as attributes."""
    server, address = await serve(FakeRouter(refuse=lambda spec: "TOO_LATE"))
    async with AsyncClient(address) as client:
        with pytest.raises(RefusedError) as caught:
            await client.generate("ab", task="sort")
    await server.stop(0)
    assert caught.value.reason == "TOO_LATE"
    assert caught.value.retry_delay_s == 0.25
    assert "RESOURCE_EXHAUSTED" in str(caught.value)


async def test_invalid_argument_names_the_fields() -> None:
    """BadRequest violations arrive with the error."""

    class Strict(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:
            await abort(context, grpc.StatusCode.INVALID_ARGUMENT, "BAD_FIELD", "spec.prompt")

    server, address = await serve(Strict())
    async with AsyncClient(address) as client:
        with pytest.raises(InvalidRequestError, match=r"spec\.prompt"):
            await client.generate("", task="sort")
    await server.stop(0)


def _details(*details: tuple[str, bytes]) -> bytes:
    """A status with details of these types and bytes."""
    status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="no such task")
    for name, value in details:
        status.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=value)
    return bytes(status.SerializeToString())


LATER = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2**62))


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff",
        _details(("ErrorInfo", b"\xff\xff")),
        _details(("BadRequest", b"\x0a\x7f")),
        _details(("RetryInfo", LATER.SerializeToString())),
    ],
    ids=["none", "info", "violations", "delay"],
)
async def test_unreadable_details_count_as_none(details: bytes) -> None:
    """Garbage in the trailing metadata does not hide the failure behind another."""

    class Garbled(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:
            context.set_trailing_metadata((("grpc-status-details-bin", details),))
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such task")

    server, address = await serve(Garbled())
    async with AsyncClient(address) as client:
        with pytest.raises(UnknownNameError, match="no such task") as caught:
            await client.generate("ab", task="sort")
    await server.stop(0)
    assert caught.value.retry_delay_s is None


async def test_no_router_at_all_is_unavailable() -> None:
    """The transport's failure is named as such."""
    gone, address = await serve(FakeRouter())
    await gone.stop(0)
    async with AsyncClient(address) as client:
        with pytest.raises(UnavailableError) as caught:
            await client.generate("ab", task="sort", deadline_s=0.5)
    assert caught.value.reason == "TRANSPORT"
