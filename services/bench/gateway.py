"""What an exchange costs at the door of gateways, beside a picker whose answers are constant.

Both are asked as our Envoy asks: one stream for each exchange, the request's headers first, and the
answer's end by trailers last. Neither an Envoy nor a server runs: only the CPU time of the picker's
process counts, as in `services.bench.hop`. An exchange is all that Python does for an answer behind
Envoy, however many tokens it has: the second metric sets that beside a relay of every token.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from services.bench.bench import Bench, Server
from services.bench.hop import DEVICES, Subject
from services.bench.load import (
    PROMPT,
    TIMEOUT_S,
    Ask,
    answered,
    cpu_per_request_s,
    generation,
    open_call,
    streaming,
    unanswered,
)
from services.bench.peers import PROCESS, STREAM
from services.bench.readings import Reading
from services.bench.routers import TASK, start_router
from tiercel.envoy.v3 import external_processor_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb2

NAME, STREAMED = "envoy", "envoy_stream_128"
TOKENS = 128
_FILTER = "envoy.filters.http.ext_proc"
_ID = "00000000-0000-4000-8000-%012x"


async def measure(bench: Bench) -> list[Reading]:
    """Measures what is wanted of this group."""
    bench.say(0.0, "starting servers")
    router, peer = await asyncio.gather(
        _router(bench), bench.start("picker", "services.bench.peers", "picker")
    )
    pair = {
        "router": Subject(router, exchanging(bench, router)),
        "constant": Subject(peer, exchanging(bench, peer)),
    }
    if STREAMED in bench.wanted:
        pair["relay"] = await _relay(bench)
    for number in range(bench.rounds + 1):
        for kind, subject in pair.items():
            bench.say(number / (bench.rounds + 1), f"round {number} of {bench.rounds}: {kind}")
            # The first round warms up and is not kept.
            count = math.ceil(bench.part(1_000 if number else 300) / (4 if kind == "relay" else 1))
            cpu_s = await cpu_per_request_s(subject.ask, subject.server, count)
            subject.cpu_s_R += [cpu_s] if number else []
    own_R, constant_R = (
        [1e6 * cpu_s for cpu_s in pair[kind].cpu_s_R] for kind in ("router", "constant")
    )
    parts = {"exchanges per CPU s": 1e6 / statistics.median(own_R)}
    readings = [Reading(NAME, own_R, constant_R, parts)]
    if STREAMED in bench.wanted:
        tokens_R = [TOKENS * rate for rate in pair["router"].rate_R]
        readings.append(Reading(STREAMED, tokens_R, pair["relay"].rate_R, parts))
    return readings


async def _relay(bench: Bench) -> Subject:
    """Starts a relay of single tokens, and the backend behind it."""
    backend = await bench.start("backend", "services.bench.peers", "backend", str(TOKENS))
    relay = await bench.start("relay", "services.bench.peers", "proxy", backend.address)
    wanted = router_pb2.GenerateStreamRequest(spec=generation(TASK, TOKENS))
    return Subject(relay, streaming(bench, relay, STREAM, wanted.SerializeToString()), TOKENS)


async def _router(bench: Bench) -> Server:
    """Starts a router that gateways may ask; its address is theirs."""
    own = {"policy": "price", "envoy_listen": "127.0.0.1:0"}
    addresses = [f"127.0.0.1:{1 + index}" for index in range(DEVICES)]
    traces = await bench.start("traces", "services.bench.peers", "traces")
    router = await start_router(
        bench, NAME, addresses, own=own, traces=traces.address, has_http=True
    )
    return dataclasses.replace(router, address=bench.address_of(NAME, NAME))


def exchanging(bench: Bench, server: Server) -> Ask:
    """Returns a function that carries one exchange to its end, on one connection."""
    call = open_call(bench, server.address, "stream_stream", PROCESS)
    numbers = itertools.count()
    end = end_of_exchange()

    async def ask() -> object:
        stream = call(timeout=TIMEOUT_S)
        begin = begin_of_exchange(_ID % next(numbers))
        with answered(server):
            for message, part in ((begin, "request_headers"), (end, "response_trailers")):
                await stream.write(message)
                said = await stream.read() or b""  # nothing at the call's end
                answer: Any = pb2.ProcessingResponse.FromString(said)
                if not answer.HasField(part):
                    raise unanswered(server, f"{part}: {said!r:.200}")
            await stream.done_writing()
            return await stream.code()

    return ask


def begin_of_exchange(request_id: str) -> bytes:
    """Returns the first message, as the configuration in `deploy/envoy` has Envoy send it."""
    message = pb2.ProcessingRequest()
    body = {"text_input": PROMPT, "sampling_parameters": json.dumps({"max_tokens": 8})}
    given: Mapping[str, str] = {
        ":path": "/v2/models/tiercel/generate_stream",
        ":method": "POST",
        "content-length": str(len(json.dumps(body))),
        "x-tiercel-task": TASK,
        "x-tiercel-deadline-ms": "5000",
        "x-request-id": request_id,
    }
    for key, text in given.items():
        message.request_headers.headers.headers.add(key=key, raw_value=text.encode())
    message.attributes[_FILTER].update({"source.address": "127.0.0.1:40000"})
    message.metadata_context.SetInParent()
    message.protocol_config.SetInParent()
    return message.SerializeToString()


def end_of_exchange() -> bytes:
    """Returns the last message: the answer is complete, and what it was."""
    message = pb2.ProcessingRequest()
    for name, text in {"status": "200", "first-byte-us": "20000"}.items():
        key = f"tiercel-answer-{name}"
        message.response_trailers.trailers.headers.add(key=key, raw_value=text.encode())
    return message.SerializeToString()
