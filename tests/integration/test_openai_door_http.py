"""Connections to the OpenAI-shaped door that HTTP allows, and OpenAI's own clients do not make."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.fakes.openai_door import RunningDoor, door_toml, running_door
from tests.fakes.router import FakeRouter, serve
from tests.waiting import LIMIT_S, until

PATH = b"/v1/completions"
BODY = json.dumps({"model": "small", "prompt": "hi"}).encode()
PAGE = b"GET /health/live HTTP/1.1\r\n\r\n"


def asking(*headers: bytes, body: bytes = BODY) -> bytes:
    """Returns the bytes of a request for an answer."""
    own = (b"content-type: application/json", b"content-length: %d" % len(body), *headers)
    return b"\r\n".join((b"POST %s HTTP/1.1" % PATH, *own, b"", body))


@asynccontextmanager
async def opened(folder: Path, *lines: str) -> AsyncIterator[tuple[RunningDoor, FakeRouter]]:
    """Opens a door before a fake router, with some lines of settings."""
    fake = FakeRouter()
    server, address = await serve(fake)
    async with running_door(folder, door_toml([address], *lines)) as door:
        yield door, fake
    await server.stop(0)


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Returns the next answer of a stated length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), LIMIT_S)
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    return head + await asyncio.wait_for(reader.readexactly(length), LIMIT_S)


def is_alone(door: RunningDoor) -> bool:
    """Whether a door has no connection."""
    return not door.server.connection_count


@pytest.mark.parametrize("pieces", ["one", "head and body", "bytes"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_offer_of_another_protocol_is_passed_over(
    tmp_path: Path, pieces: str, is_chunked: bool
) -> None:
    """Clients of Java offer HTTP/2 with a POST; its body counts, and what follows it does too."""
    offer = (
        b"connection: Upgrade, HTTP2-Settings",
        b"upgrade: h2c",
        b"http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    sent = asking(*offer)
    if is_chunked:
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
        length = b"content-length: %d" % len(BODY)
        sent = sent.removesuffix(BODY).replace(length, b"transfer-encoding: chunked") + chunks
    head, body = sent.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", sent.partition(b"\r\n\r\n")[2]
    parts = {
        "one": [sent],
        "head and body": [head, body],
        "bytes": [sent[at : at + 1] for at in range(len(sent))],
    }[pieces]
    async with opened(tmp_path) as (door, fake):
        reader, writer = await asyncio.open_connection(*door.server.address)
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200 ")
        writer.write(PAGE)
        assert b'{"status":"live"}' in await answer_of(reader)
        writer.close()
    assert [spec.prompt for spec in fake.specs] == ["hi"]


async def test_what_comes_after_a_body_is_no_header(tmp_path: Path) -> None:
    """A gateway that sets a header looks at the head alone."""
    chunks = b"%x\r\n%s\r\n0\r\nx-tiercel-task: copa\r\nx-tiercel-nothing: 1\r\n\r\n"
    head = (
        b"POST %s HTTP/1.1\r\ncontent-type: application/json\r\nx-tiercel-task: piqa\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    async with opened(tmp_path) as (door, fake):
        reader, writer = await asyncio.open_connection(*door.server.address)
        writer.write(head % PATH + chunks % (len(BODY), BODY))
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert [spec.task for spec in fake.specs] == ["piqa"]


async def test_headers_in_one_piece_are_bounded_too(tmp_path: Path) -> None:
    """Whether they come at once is up to the network."""
    long = b"GET /health/live HTTP/1.1\r\nx: %s\r\n\r\n" % (b"y" * 20_000)
    async with opened(tmp_path, "max_header_bytes = 8192") as (door, _):
        reader, writer = await asyncio.open_connection(*door.server.address)
        writer.write(long)
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert b'"code": "headers_too_large"' in answer
        writer.close()


async def test_few_requests_wait_on_one_connection(tmp_path: Path) -> None:
    """Each would take a hundred times the memory of its bytes; some are answered in their order."""
    async with opened(tmp_path) as (door, fake):
        reader, writer = await asyncio.open_connection(*door.server.address)
        bodies = [json.dumps({"model": "small", "prompt": str(at)}).encode() for at in range(10)]
        writer.write(b"".join(asking(body=body) for body in bodies))
        for at in range(10):
            assert f'"text": "{at}"'.encode() in await answer_of(reader)
        fake.delay_s = LIMIT_S
        writer.write(PAGE + asking() + PAGE * 1_000)
        await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        text = (await door.client.get("/metrics")).text
    assert 'code="too_many_requests_ahead",route="refused",status="400"} 1.0' in text


@pytest.mark.parametrize(
    ("request_", "more"),
    [
        (PAGE, b"\r\n"),
        (b"PUT /v1/models HTTP/1.1\r\ncontent-length: 1\r\n\r\n", b"x"),
    ],
)
async def test_a_connection_is_idle_whatever_came_last(
    tmp_path: Path, request_: bytes, more: bytes
) -> None:
    """An empty line, or the rest of a request that was answered before its end."""
    async with opened(tmp_path, "keep_alive_s = 0.3") as (door, _):
        reader, writer = await asyncio.open_connection(*door.server.address)
        writer.write(request_)
        await answer_of(reader)
        writer.write(more)
        with suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), LIMIT_S) == b""
        writer.close()


@pytest.mark.parametrize("more", [b"nonsense\r\n\r\n", b"GET"])
async def test_what_is_never_read_is_not_kept(tmp_path: Path, more: bytes) -> None:
    """Also where the connection was to be closed before: TCP alone would wait for ever."""
    lines = ("head_timeout_s = 0.3", "write_stall_s = 1.5")
    async with opened(tmp_path, *lines) as (door, fake):
        fake.answer = lambda _: "x" * 16_000_000
        _, writer = await asyncio.open_connection(*door.server.address)
        writer.write(asking())
        served: Any = door.server

        def is_paused() -> bool:
            connections = served._server.server_state.connections
            return any(each.flow.write_paused for each in connections)

        await until(is_paused, "the answer is not read")
        writer.write(more)
        await until(partial(is_alone, door), "the connection is let go")
        writer.close()


@pytest.mark.parametrize(
    ("sent", "delay_s"),
    [
        (PAGE, 0.0),
        (asking(), 0.0),
        (asking(), LIMIT_S),
        (asking() * 2, LIMIT_S),
        (asking()[:-1], 0.0),
        (PAGE[:-1], 0.0),
        (b"nonsense\r\n\r\n", 0.0),
    ],
    ids=["page", "answered", "given up", "two given up", "half a body", "half a head", "no HTTP"],
)
async def test_a_connection_that_has_ended_waits_for_no_collector(
    tmp_path: Path, sent: bytes, delay_s: float
) -> None:
    """The door's looks after 50,000 new objects only; until then bodies would be kept."""
    async with opened(tmp_path) as (door, fake):
        fake.delay_s = delay_s
        server: Any = door.server
        connections = server._server.server_state.connections
        gc.collect()
        gc.disable()
        try:
            reader, writer = await asyncio.open_connection(*door.server.address)
            await until(lambda: connections, "the door has the connection")
            (kept,) = map(weakref.ref, connections)
            writer.write(sent)
            if delay_s:
                await until(lambda: fake.specs, "the router has the request")
            elif sent in (PAGE, asking()):
                await answer_of(reader)
            writer.close()
            await until(lambda: kept() is None, "nothing holds the connection")
        finally:
            gc.enable()


def test_a_client_that_leaves_with_requests_waiting_is_no_error(tmp_path: Path) -> None:
    """The one that is answered ends, those that wait are never begun, and nothing is logged."""
    told: list[dict[str, Any]] = []

    async def leave() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
        async with opened(tmp_path) as (door, fake):
            fake.delay_s = LIMIT_S
            _, writer = await asyncio.open_connection(*door.server.address)
            writer.write(asking() * 2)
            await until(lambda: len(fake.specs) == 1, "the router has the first request")
            writer.close()
            await until(lambda: fake.cancelled_count == 1, "its work has stopped")
            await until(partial(is_alone, door), "the connection is let go")
            await asyncio.sleep(0)
            gc.collect()

    uvloop.run(leave())
    assert not told
