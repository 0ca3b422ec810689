"""Load on one server: requests as fast as they go, or at a rate; bytes in and out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as kserve

from services.bench.bench import Bench, Server
from services.bench.peers import INFER, question
from services.common.channels import STRAIGHT
from services.local.errors import CommandError
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

SERVICE = "/tiercel.router_inference.v1.RouterInferenceService"
IN_FLIGHT = 16
TIMEOUT_S = 10.0
PROMPT = "word " * 96
"""About the length of the evaluation's prompts."""
TOKEN = b"word"
"""In every token that fake servers answer with."""
FINAL = "triton_final_response"
Ask = Callable[[], Awaitable[object]]
Stream = Callable[[], Awaitable[float]]
"""Asks, reads the answer to its end, and returns when its first token had come."""
_READ_BYTES = 65_536
_HEAD_END, _LAST_CHUNK = b"\r\n\r\n", b"0\r\n\r\n"


def generation(task: str, token_count: int) -> pb2.GenerationSpec:
    """Returns what a benchmark asks a router for."""
    return pb2.GenerationSpec(prompt=PROMPT, task=task, max_output_tokens=token_count)


def open_call(bench: Bench, address: str, kind: str, method: str) -> Any:
    """Returns a method of raw bytes on a connection of its own, closed with the group."""
    channel = grpc.aio.insecure_channel(
        address, options=[("grpc.use_local_subchannel_pool", 1), *STRAIGHT]
    )
    bench.stack.push_async_callback(channel.close)
    return getattr(channel, kind)(method)


def unary(bench: Bench, server: Server, method: str, payload: bytes) -> Ask:
    """Returns a function that makes one unary call."""
    call = open_call(bench, server.address, "unary_unary", method)

    async def ask() -> object:
        with answered(server):
            return await call(payload, timeout=TIMEOUT_S)

    return ask


def streaming(bench: Bench, server: Server, method: str, payload: bytes) -> Stream:
    """Returns a function that makes one server-streaming call and reads it to its end."""
    call = open_call(bench, server.address, "unary_stream", method)

    async def ask() -> float:
        first_s = 0.0
        with answered(server):
            async for _ in call(payload, timeout=TIMEOUT_S):
                first_s = first_s or time.perf_counter()
        return first_s

    return ask


def infer(bench: Bench, server: Server, payload: bytes = b"") -> Stream:
    """Returns a function that asks by ModelStreamInfer; without a payload a backend itself.

    An error comes as a message of a call that ends well: what costs nothing to answer is no answer.
    """
    call = open_call(bench, server.address, "stream_stream", INFER)
    payload = payload or question()

    async def ask() -> float:
        last, first_s = b"", 0.0
        with answered(server):
            async for message in call(iter((payload,)), timeout=TIMEOUT_S):
                last, first_s = message, first_s or time.perf_counter()
        end = kserve.ModelStreamInferResponse.FromString(last)
        if end.error_message or not end.infer_response.parameters[FINAL].bool_param:
            raise unanswered(server, end.error_message or "the answer has no end")
        return first_s

    return ask


def posting(
    bench: Bench,
    server: Server,
    path: str,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    marks: Sequence[bytes] = (),
) -> Stream:
    """Returns a function that posts JSON over HTTP, on connections that stay.

    Args:
        bench: Closes the connections.
        server: Who is asked.
        path: For what.
        body: JSON.
        headers: Further headers.
        marks: What an answer must hold, its head included; a token it must hold anyway.
    """
    given = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(body)),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {text}\r\n" for name, text in given.items())
    request = f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    host, _, port = server.address.partition(":")
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def close() -> None:
        for _, writer in idle:
            writer.close()

    bench.stack.push_async_callback(close)

    async def connection() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()  # the server had enough of it while others took their turns
        return await asyncio.open_connection(host, int(port))

    async def ask() -> float:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await connection()
                writer.write(request)
                answer, first_s = await _answer(reader)
        except (OSError, EOFError) as error:
            raise unanswered(server, repr(error)) from None
        is_whole = first_s and all(mark in answer for mark in marks)
        if not answer.startswith(b"HTTP/1.1 200 ") or b'"error"' in answer or not is_whole:
            raise unanswered(server, repr(answer[-200:]))
        idle.append((reader, writer))
        return first_s

    return ask


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """Returns an answer, and when its first token had come; 0 if it has none."""
    answer, first_s = b"", 0.0
    while not _is_complete(answer):
        piece = await reader.read(_READ_BYTES)
        if not piece:
            raise EOFError("the connection was closed")
        answer += piece
        if not first_s and TOKEN in answer:
            first_s = time.perf_counter()
    return answer, first_s


def _is_complete(answer: bytes) -> bool:
    head, has_head, body = answer.partition(_HEAD_END)
    _, is_sized, rest = head.lower().partition(b"content-length:")
    if has_head and is_sized:
        return len(body) >= int(rest.split(b"\r\n")[0])
    return body.endswith(_LAST_CHUNK)


@contextlib.contextmanager
def answered(server: Server) -> Iterator[None]:
    """Makes a call that fails an error of the command: its cost says nothing of an answer's."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        said = f"{error.code().name}: {error.details()}"
        raise unanswered(server, said) from None


def unanswered(server: Server, why: str) -> CommandError:
    """Returns the error of a request that got no answer."""
    return CommandError(f"{server.address} did not answer a request of the benchmark: {why}")


async def cpu_per_request_s(
    ask: Ask, server: Server, request_count: int, in_flight: int = IN_FLIGHT
) -> float:
    """Sends requests with so many under way; returns the server's CPU time for each."""
    return (await cpu_by_server_s(ask, {"": server}, request_count, in_flight))[""]


async def cpu_by_server_s(
    ask: Ask, servers: Mapping[str, Server], request_count: int, in_flight: int = IN_FLIGHT
) -> dict[str, float]:
    """Sends requests with so many under way; returns what each cost, by the name of the server."""
    left = iter(range(request_count))

    async def worker() -> None:
        for _ in left:
            await ask()

    before_s = {name: server.cpu_s() for name, server in servers.items()}
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return {
        name: (server.cpu_s() - before_s[name]) / request_count for name, server in servers.items()
    }


async def latencies_s(ask: Ask, rate_rps: float, duration_s: float) -> list[float]:
    """Sends requests at even intervals whatever becomes of them; returns how long each took."""

    async def end_s() -> float:
        await ask()
        return time.perf_counter()

    return await first_tokens_s(end_s, rate_rps, duration_s)


async def first_tokens_s(ask: Stream, rate_rps: float, duration_s: float) -> list[float]:
    """Does the same, and returns how long each first token took; both in order of size.

    From when it was sent: how late this process was itself would count on every side alike.
    """
    start_s = time.perf_counter()

    async def one(sent_s: float) -> float:
        return await ask() - sent_s

    tasks = []
    for index in range(max(1, round(rate_rps * duration_s))):
        due_s = start_s + index / rate_rps
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(time.perf_counter())))
    return sorted(await asyncio.gather(*tasks))


def percentile(sorted_values: Sequence[float], share: float) -> float:
    """Returns the value below which a share of all lies."""
    return sorted_values[int(share * len(sorted_values))]
