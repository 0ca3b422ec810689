"""Load on one server: requests as fast as they go, or at a rate; bytes in and out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
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
FINAL = "triton_final_response"
Ask = Callable[[], Awaitable[object]]


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


def streaming(bench: Bench, server: Server, method: str, payload: bytes) -> Ask:
    """Returns a function that makes one server-streaming call and reads it to its end."""
    call = open_call(bench, server.address, "unary_stream", method)

    async def ask() -> object:
        last = b""
        with answered(server):
            async for message in call(payload, timeout=TIMEOUT_S):
                last = message
        return last

    return ask


def infer(bench: Bench, server: Server, payload: bytes = b"") -> Ask:
    """Returns a function that asks by ModelStreamInfer; without a payload a backend itself.

    An error comes as a message of a call that ends well: what costs nothing to answer is no answer.
    """
    call = open_call(bench, server.address, "stream_stream", INFER)
    payload = payload or question()

    async def ask() -> object:
        last = b""
        with answered(server):
            async for message in call(iter((payload,)), timeout=TIMEOUT_S):
                last = message
        end = kserve.ModelStreamInferResponse.FromString(last)
        if end.error_message or not end.infer_response.parameters[FINAL].bool_param:
            raise unanswered(server, end.error_message or "the answer has no end")
        return last

    return ask


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
    left = iter(range(request_count))

    async def worker() -> None:
        for _ in left:
            await ask()

    before_s = server.cpu_s()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return (server.cpu_s() - before_s) / request_count


async def latencies_s(ask: Ask, rate_rps: float, duration_s: float) -> list[float]:
    """Sends requests at even intervals whatever becomes of them; returns how long each took.

    From when it was sent: how late this process was itself would count on every side alike.
    """
    start_s = time.perf_counter()

    async def one(sent_s: float) -> float:
        await ask()
        return time.perf_counter() - sent_s

    tasks = []
    for index in range(max(1, round(rate_rps * duration_s))):
        due_s = start_s + index / rate_rps
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(time.perf_counter())))
    return sorted(await asyncio.gather(*tasks))
