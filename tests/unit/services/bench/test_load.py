"""Load on one server: what is no answer is not counted as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.bench.bench import SUITES, Bench, Server
from services.bench.gateway import exchanging
from services.bench.load import infer, latencies_s, unary
from services.bench.peers import INFER, PROCESS, UNARY, Handlers, answer, backend
from services.local.errors import CommandError
from tiercel.envoy.v3 import external_processor_pb2 as pb2


@asynccontextmanager
async def served(handlers: Handlers, folder: Path) -> AsyncIterator[tuple[Bench, Server]]:
    """Serves them, for a benchmark that asks."""
    server: grpc.aio.Server = grpc.aio.server()
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        bench = Bench(frozenset(), SUITES["smoke"], folder, stack, lambda _, __: None)
        yield bench, Server(f"127.0.0.1:{port}", "", 1)


def saying(*messages: bytes) -> Handlers:
    """Returns a tier that answers every request so."""

    async def stream(_: Any, __: Any) -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    return Handlers({INFER: grpc.stream_stream_rpc_method_handler(stream)})


async def test_a_whole_answer_is_one(tmp_path: Path) -> None:
    """The last message says that it is; times are sorted."""
    async with served(backend("2"), tmp_path) as (bench, server):
        took_s = await latencies_s(infer(bench, server), 100.0, 0.03)
    assert len(took_s) == 3
    assert took_s == sorted(took_s)


REFUSED = kserve.ModelStreamInferResponse(error_message="full")


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ((REFUSED.SerializeToString(),), "full"),
        (tuple(answer(2)[:1]), "the answer has no end"),
        ((), "the answer has no end"),
    ],
)
async def test_an_error_in_a_stream_that_ends_well_is_no_answer(
    messages: tuple[bytes, ...], why: str, tmp_path: Path
) -> None:
    """It costs a server next to nothing, and would look like a fast one."""
    async with served(saying(*messages), tmp_path) as (bench, server):
        with pytest.raises(CommandError, match=f"did not answer a request .*: {why}"):
            await infer(bench, server)()


EXCHANGE = [pb2.ProcessingResponse(), pb2.ProcessingResponse()]
EXCHANGE[0].request_headers.SetInParent()
EXCHANGE[1].response_trailers.SetInParent()
BEGUN, ENDED = (each.SerializeToString() for each in EXCHANGE)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ((BEGUN, ENDED), ""),
        ((), "request_headers"),
        ((BEGUN,), "trailers"),
        ((BEGUN,) * 2, "trailers"),
    ],
)
async def test_an_exchange_is_answered_at_its_beginning_and_its_end(
    said: tuple[bytes, ...], why: str, tmp_path: Path
) -> None:
    """One whose end nobody takes costs less."""

    async def process(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        for message in said:
            await anext(requests)
            yield message
        await anext(requests, None)

    handlers = Handlers({PROCESS: grpc.stream_stream_rpc_method_handler(process)})
    async with served(handlers, tmp_path) as (bench, server):
        ask = exchanging(bench, server)
        if not why:
            assert await ask() is grpc.StatusCode.OK
            return
        with pytest.raises(CommandError, match=why):
            await ask()


async def test_a_call_that_fails_is_an_error_of_the_command(tmp_path: Path) -> None:
    """With the status, instead of a traceback."""
    async with served(Handlers({}), tmp_path) as (bench, server):
        with pytest.raises(CommandError, match="UNIMPLEMENTED"):
            await unary(bench, server, UNARY, b"")()
