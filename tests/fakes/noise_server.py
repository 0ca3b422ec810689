"""A gRPC server that answers every call of every method with bytes that are no message."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

NOISE = b"\xff\xff\xff\xff"


class _AnyMethod(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        """Returns the same handler whatever is called."""

        async def answer(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
            await anext(requests)
            yield NOISE

        return grpc.stream_stream_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def noise_server() -> AsyncIterator[str]:
    """Runs one; yields its address."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_AnyMethod(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
