"""Calls that are kept, against a scripted KServe v2 server on a real socket."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.tiers.errors import TierOverloadedError
from services.common.triton.client import TritonClient
from services.common.triton.streams import TierStream
from tests.waiting import until


class Server(kserve_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers request after request; counts calls and what became of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.cancelled = 0
        self.most_per_call = 1_000_000
        self.prompts: list[str] = []

    async def ModelStreamInfer(
        self, requests: Any, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        """`hang` is answered never, `full` with an error, all else at once."""
        self.calls += 1
        count = 0
        try:
            async for request in requests:
                prompt = request.raw_input_contents[0][4:].decode()
                self.prompts.append(prompt)
                if prompt == "hang":
                    await asyncio.Event().wait()
                if prompt == "full":
                    text = "Exceeds maximum queue size"
                    yield kserve.ModelStreamInferResponse(error_message=text)
                    continue
                message = kserve.ModelStreamInferResponse()
                message.infer_response.id = request.id
                message.infer_response.parameters["triton_final_response"].bool_param = True
                yield message
                count += 1
                if count == self.most_per_call:
                    return
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@asynccontextmanager
async def serving(most_idle: int = 4) -> AsyncIterator[tuple[Server, TritonClient]]:
    """A server and a client that keeps calls."""
    server, grpc_server = Server(), grpc.aio.server()
    kserve_grpc.add_GRPCInferenceServiceServicer_to_server(server, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with TritonClient(f"127.0.0.1:{port}", most_idle_streams=most_idle) as client:
        yield server, client
    await grpc_server.stop(None)


async def _ask(client: TritonClient, prompt: str = "x", **options: Any) -> None:
    async for _ in client.generate("m", prompt, 4, **{"timeout_s": 5.0, **options}):
        pass


async def test_requests_follow_each_other_on_one_call() -> None:
    """One after the other they need one call."""
    async with serving() as (server, client):
        for _ in range(5):
            await _ask(client)
        assert server.calls == 1


async def test_without_idle_calls_each_request_has_its_own() -> None:
    """The setting switches the reuse off."""
    async with serving(most_idle=0) as (server, client):
        for _ in range(3):
            await _ask(client)
        assert server.calls == 3
        assert client.stream_count == 0


async def test_a_sampled_request_has_a_call_of_its_own() -> None:
    """Metadata belongs to a call, and would be that of the requests after it."""
    async with serving() as (server, client):
        await _ask(client)
        await _ask(client, metadata=[("traceparent", "x")])
        assert server.calls == 2
        assert client.stream_count == 1


async def test_a_call_is_not_kept_beyond_its_connection() -> None:
    """With renewed certificates there is another; the old one is closed, whatever it carries."""
    async with serving() as (server, client):
        connection = [object()]
        client._streams._connection = lambda: connection[0]
        for _ in range(2):
            await _ask(client)
        assert server.calls == 1
        connection[0] = object()
        await _ask(client)  # goes on the call that was idle, its last
        await until(lambda: not client.stream_count, "the call has ended")
        for _ in range(2):
            await _ask(client)
        assert server.calls == 2


async def test_a_cancelled_request_takes_its_call_with_it() -> None:
    """The server hears of it, and the next request is carried by another call."""
    async with serving() as (server, client):
        await _ask(client)
        task = asyncio.create_task(_ask(client, "hang"))
        await until(lambda: "hang" in server.prompts, "the request is there")
        task.cancel()
        await until(lambda: server.cancelled == 1, "the server hears of it")
        await _ask(client)
        assert server.calls == 2


async def test_a_request_given_up_before_it_is_sent_leaves_nothing() -> None:
    """Its time may be over, or its client gone, before its call begins."""
    async with serving() as (_, client):
        heard: list[Any] = []
        asking = client.ask("m", "x", 4, timeout_s=5.0, on_chunk=heard.append, on_end=heard.append)
        asking.cancel()
        await until(lambda: not client.busy_count, "no call carries it", 5.0)
        assert (client.stream_count, heard) == (0, [])


async def test_a_call_that_was_cancelled_waits_for_no_collector() -> None:
    """A router's looks seldom, and until then the call would keep its connection open."""

    def is_gone() -> bool:
        return not any(type(each) is TierStream for each in gc.get_objects())

    async with serving() as (server, client):
        gc.collect()
        gc.disable()
        try:
            waiting = asyncio.create_task(_ask(client, "hang"))
            await until(lambda: server.prompts, "the server has the request")
            waiting.cancel()
            await asyncio.wait([waiting])
            await until(is_gone, "nothing holds the call")
        finally:
            gc.enable()


async def test_a_failed_request_takes_its_call_with_it() -> None:
    """What may still come for it reaches nobody."""
    async with serving() as (server, client):
        await _ask(client)
        with pytest.raises(TierOverloadedError):
            await _ask(client, "full")
        await _ask(client)
        assert server.calls == 2


async def test_a_call_that_ended_while_idle_costs_no_request() -> None:
    """A server that takes one request per call serves on."""
    async with serving() as (server, client):
        server.most_per_call = 1
        for _ in range(4):
            await _ask(client)
        assert len(server.prompts) == 4


async def test_a_request_that_is_left_ends_at_its_timeout() -> None:
    """Nobody listens any more; a tier that does not end it is cancelled."""
    async with serving() as (server, client):
        heard: list[Any] = []
        asking = client.ask(
            "m", "hang", 4, timeout_s=0.2, on_chunk=heard.append, on_end=heard.append
        )
        asking.leave()
        await until(lambda: server.cancelled == 1, "the call is cancelled")
        assert heard == []
        assert client.stream_count == 0


async def test_closing_tells_those_who_wait() -> None:
    """A request under way ends with an error when the client is closed."""
    async with serving() as (server, client):
        heard: list[Any] = []
        client.ask("m", "hang", 4, timeout_s=9.0, on_chunk=heard.append, on_end=heard.append)
        await until(lambda: server.prompts, "the request is there")
        await client.close()
        [failure] = heard
        assert failure.reason == "CANCELLED"
