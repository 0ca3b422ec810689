"""A stream that falls silent is given up, so that another monitor can be found."""

from __future__ import annotations

import asyncio
from typing import Any

from services.common.channels import open_channel
from services.router_inference.reconnect import END_OF_STREAM
from services.router_inference.view.monitor_link import with_silence_limit
from tests.fakes.noise_server import noise_server
from tests.unit.services.router_inference.scenario import scenario
from tiercel.load_monitor.v1.load_monitor_service_pb2 import WatchSystemStateRequest
from tiercel.load_monitor.v1.load_monitor_service_pb2_grpc import LoadMonitorServiceStub


class Call:
    """A stream that sends one message after each delay, and then ends."""

    def __init__(self, *delays_s: float) -> None:
        self._delays_s = list(delays_s)
        self.is_cancelled = False

    async def read(self) -> Any:
        """Returns the next message."""
        if not self._delays_s:
            return END_OF_STREAM
        await asyncio.sleep(self._delays_s.pop(0))
        return len(self._delays_s)

    def cancel(self) -> None:
        """Ends the stream."""
        self.is_cancelled = True


@scenario
async def test_a_stream_that_ends_is_read_to_its_end() -> None:
    """Messages that come within the limit are all handed on."""
    call = Call(0.5, 0.9, 0.9)
    assert [message async for message in with_silence_limit(call, 1.0)] == [2, 1, 0]
    assert call.is_cancelled


@scenario
async def test_a_silent_stream_ends_at_the_limit() -> None:
    """The message that comes too late is not waited for."""
    call = Call(0.5, 30.0)
    started_s = asyncio.get_running_loop().time()
    assert [message async for message in with_silence_limit(call, 1.0)] == [1]
    assert asyncio.get_running_loop().time() - started_s < 2.0
    assert call.is_cancelled


async def test_a_message_that_cannot_be_read_ends_the_stream() -> None:
    """It is given up, as a monitor that is no good."""
    async with noise_server() as address, open_channel(address) as channel:
        stub: Any = LoadMonitorServiceStub(channel)
        call = stub.WatchSystemState(WatchSystemStateRequest())
        assert [message async for message in with_silence_limit(call, 30.0)] == []
