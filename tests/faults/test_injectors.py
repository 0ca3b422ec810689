"""What hurts the mesh does what it is told, and lets go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from services.common.tiers.errors import TierError
from services.common.triton.client import TritonClient
from tests.fakes.triton import FakeTriton
from tests.faults.cases import clock
from tests.faults.clock import ShiftedClocks
from tests.faults.relay import Relay
from tests.faults.triton_proxy import TritonProxy
from tests.waiting import LIMIT_S

HOUR_S = 3600.0


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Sends back what comes."""
    while data := await reader.read(100):
        writer.write(data)
    writer.close()


async def test_a_wire_holds_back_one_way_moves_and_resets() -> None:
    """Bytes that are held back come afterwards; a reset is seen as one."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    wire = await Relay(f"{host}:{port}").start()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    wire.back.flows.clear()
    writer.write(b"held")
    reading = asyncio.ensure_future(reader.read(100))
    await asyncio.wait([reading], timeout=0.1)
    assert not reading.done()
    wire.mend()
    assert await asyncio.wait_for(reading, LIMIT_S) == b"held"
    wire.reset()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.read(100), LIMIT_S)
    writer.close()
    await wire.close()
    server.close()


@pytest.fixture
async def proxy() -> AsyncIterator[TritonProxy]:
    """A proxy before an endpoint in process."""
    triton = await FakeTriton().start()
    proxy = await TritonProxy(triton.address).start()
    yield proxy
    await proxy.close()
    await triton.stop()


async def ask(proxy: TritonProxy, timeout_s: float = LIMIT_S) -> str:
    """Returns an answer that came through the proxy."""
    async with TritonClient(proxy.address) as client:
        answer = client.generate("m", "p", 8, timeout_s=timeout_s)
        return "".join([piece.text async for piece in answer])


def garble(proxy: TritonProxy) -> None:
    """Has it send garbage."""
    proxy.garbles = True


def cut(proxy: TritonProxy) -> None:
    """Has it break streams off."""
    proxy.cut_after = 1


def refuse(proxy: TritonProxy) -> None:
    """Has it refuse."""
    proxy.refuses = True


@pytest.mark.parametrize("misbehave", [garble, cut, refuse])
async def test_a_proxy_spoils_answers_until_it_is_mended(
    proxy: TritonProxy, misbehave: Callable[[TritonProxy], None]
) -> None:
    """Each kind of it is a failure of the endpoint."""
    misbehave(proxy)
    for _ in range(4):
        with pytest.raises(TierError):
            await ask(proxy)
    assert proxy.faults >= 4
    proxy.mend()
    assert await ask(proxy) == "abc"


async def test_a_stuck_proxy_withholds_answers_until_it_is_mended(proxy: TritonProxy) -> None:
    """They come late rather than never."""
    proxy.is_stuck = True
    asking = asyncio.ensure_future(ask(proxy))
    await asyncio.wait([asking], timeout=0.2)
    assert not asking.done()
    proxy.mend()
    assert await asking == "abc"


@pytest.mark.skipif(bool(clock._problem()), reason="no C compiler is installed")
def test_a_shifted_clock_is_the_wall_clock_alone(tmp_path: Path) -> None:
    """A process sees the hour at once, in no other clock, and waits as long as before."""
    clocks = ShiftedClocks(tmp_path / "clocks")
    code = (
        "import threading, time; print(time.time(), time.monotonic(), flush=True); input();"
        "threading.Event().wait(0.01); print(time.time(), time.monotonic(), flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=dict(clocks.variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        wall_s, monotonic_s = map(float, process.stdout.readline().split())
        clocks.step(process.pid, -HOUR_S)
        after, _ = process.communicate("\n", timeout=LIMIT_S)
    wall_later_s, monotonic_later_s = map(float, after.split())
    passed_s = monotonic_later_s - monotonic_s
    assert 0.0 < passed_s < LIMIT_S
    assert wall_later_s - wall_s == pytest.approx(passed_s - HOUR_S, abs=LIMIT_S)
    assert abs(time.time() - wall_s) < LIMIT_S
