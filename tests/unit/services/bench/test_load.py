"""Load on one server: what is no answer is not counted as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.bench import load
from services.bench.bench import SUITES, Bench, Server
from services.bench.gateway import exchanging
from services.bench.http_peers import Handler, chat, completion
from services.bench.load import infer, latencies_s, posting, unary
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


@asynccontextmanager
async def chatting(handler: Handler, folder: Path) -> AsyncIterator[tuple[Bench, Server]]:
    """Serves HTTP, for a benchmark that asks."""
    http = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        stack.callback(http.close)
        bench = Bench(frozenset(), SUITES["smoke"], folder, stack, lambda _, __: None)
        yield bench, Server(f"127.0.0.1:{http.sockets[0].getsockname()[1]}", "", 1)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v2/models/tiercel/generate_stream"]
)
async def test_a_stream_over_http_is_read_to_its_end(path: str, tmp_path: Path) -> None:
    """Every token is there, and what servers of OpenAI's protocol say last; connections stay."""
    ends = [] if path.startswith("/v2/") else [b"[DONE]", b'"completion_tokens": 3']
    async with chatting(chat("3/0.001"), tmp_path) as (bench, server):
        ask = posting(bench, server, path, b'{"stream": true}', marks=ends)
        assert await ask() > 0.0
        assert await ask() > 0.0


async def test_a_first_token_counts_from_when_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends the others only after it was seen."""
    seen, sent = asyncio.Event(), 0

    def clock() -> float:
        seen.set()
        return float(sent)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        for piece in completion(b"/v1/completions", 3, is_stream=True):
            writer.write(piece)
            sent += 1
            await seen.wait()
        writer.close()

    monkeypatch.setattr(load, "time", SimpleNamespace(perf_counter=clock))
    async with chatting(handle, tmp_path) as (bench, server):
        assert await posting(bench, server, "/v1/completions", b"", marks=[b"[DONE]"])() == 1.0


async def test_an_answer_in_one_piece_is_one(tmp_path: Path) -> None:
    """It has as many tokens as the server was told."""
    async with chatting(chat("2"), tmp_path) as (bench, server):
        path = "/v1/chat/completions"
        assert await posting(bench, server, path, b"{}", marks=[b'"word word "'])() > 0.0


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (b"HTTP/1.1 503 No\r\nx-seen: 1\r\ncontent-length: 4\r\n\r\nword", "word"),
        (b'HTTP/1.1 200 OK\r\nx-seen: 1\r\ncontent-length: 16\r\n\r\nword {"error":1}', "error"),
        (b"HTTP/1.1 200 OK\r\nx-seen: 1\r\ncontent-length: 0\r\n\r\n", "200 OK"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nword", "200 OK"),
        (b"HTTP/1.1 200 OK\r\nx-seen: 1\r\ncontent-length: 9\r\n\r\nword", "was closed"),
    ],
    ids=["status", "error", "no token", "no mark", "cut"],
)
async def test_what_is_no_answer_over_http_is_an_error(
    reply: bytes, why: str, tmp_path: Path
) -> None:
    """It costs a server less than an answer."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    async with chatting(handle, tmp_path) as (bench, server):
        with pytest.raises(CommandError, match=f"did not answer a request .*{why}"):
            await posting(bench, server, "/", b"", marks=[b"x-seen"])()


async def test_a_connection_that_the_server_has_closed_is_not_used_again(tmp_path: Path) -> None:
    """Servers close what is idle while others take their turns."""
    count, closed = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nword")
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with chatting(handle, tmp_path) as (bench, server):
        ask = posting(bench, server, "/", b"")
        await ask()
        await closed.wait()
        for _ in range(3):  # the loop looks at its sockets
            await asyncio.sleep(0)
        await ask()
    assert count == 2
