"""What a failed call says."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

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


async def test_unreadable_details_count_as_none() -> None:
    """Garbage in the trailing metadata does not hide the failure behind another."""

    class Garbled(FakeRouter):
        async def Generate(self, request: Any, context: Any) -> Any:
            context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff"),))
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
