"""A gateway as a picker sees it: one stream of messages for each HTTP exchange."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from services.router_inference.doors.envoy.picker import Picker
from services.router_inference.doors.envoy.replies import Answer
from tests.unit.services.router_inference.parts import Rig, make_rig
from tiercel.envoy.v3 import external_processor_pb2 as pb2

GENERATE = "/v2/models/tiercel/generate_stream"
HTTP_PORT = 8000


def http_address(index: int) -> str:
    """Returns where a gateway reaches endpoint `e<index>`."""
    return f"127.0.0.1:{HTTP_PORT + index}"


def gateway_rig(*, endpoint_count: int = 1, **options: Any) -> Rig:
    """Builds a router that serves gateways; every endpoint has an HTTP address of its own."""
    mesh = options.pop("mesh", {})
    endpoints = [
        {
            "name": f"e{index}",
            "address": f"127.0.0.1:{9000 + index}",
            "http_address": http_address(index),
            "tiers": ("small", "medium", "large"),
        }
        for index in range(endpoint_count)
    ]
    return make_rig(
        endpoint_count=endpoint_count,
        envoy_listen="127.0.0.1:0",
        mesh={"endpoints": endpoints, **mesh},
        **options,
    )


def headers(values: Mapping[str, str]) -> pb2.HttpHeaders:
    """Returns a message of headers."""
    entries = [pb2.HeaderValue(key=key, raw_value=text.encode()) for key, text in values.items()]
    return pb2.HttpHeaders(headers=pb2.HeaderMap(headers=entries))


def request(path: str = GENERATE, **values: str) -> pb2.ProcessingRequest:
    """Returns the first message of an exchange; header names with `_` for `-`."""
    given = {":path": path, ":method": "POST", "content-length": "40", "x-tiercel-task": "hard"}
    given |= {key.replace("_", "-"): value for key, value in values.items()}
    return pb2.ProcessingRequest(request_headers=headers(given))


def with_body_to_come(mode: int = pb2.BUFFERED, **values: str) -> pb2.ProcessingRequest:
    """Returns the first message of an exchange whose body the gateway sends, OpenAI-shaped."""
    message = request("/v1/chat/completions", **values)
    message.protocol_config.request_body_mode = mode  # type: ignore[assignment]
    return message


def body(data: bytes, *, end: bool = True) -> pb2.ProcessingRequest:
    """Returns the message of a body, or of a piece of it."""
    return pb2.ProcessingRequest(request_body=pb2.HttpBody(body=data, end_of_stream=end))


def response(status: int = 200, *, served: str = "", end: bool = False) -> pb2.ProcessingRequest:
    """Returns the message of an answer's headers."""
    message = pb2.ProcessingRequest(response_headers=headers({":status": str(status)}))
    message.response_headers.end_of_stream = end
    if served:
        message.metadata_context.filter_metadata["envoy.lb"].update(
            {"x-gateway-destination-endpoint-served": served}
        )
    return message


TRAILERS = pb2.ProcessingRequest(response_trailers=pb2.HttpTrailers())


def ended(status: int = 200, **told: str) -> pb2.ProcessingRequest:
    """Returns the only message of an answer that some gateways send; names without their prefix."""
    message = pb2.ProcessingRequest(response_trailers=pb2.HttpTrailers())
    for name, text in {"status": str(status), **told}.items():
        key = f"tiercel-answer-{name.replace('_', '-')}"
        message.response_trailers.trailers.headers.add(key=key, raw_value=text.encode())
    return message


def set_headers(answer: pb2.ProcessingResponse) -> dict[str, str]:
    """Returns the headers that an answer sets."""
    kind = answer.WhichOneof("response")
    part = getattr(answer, str(kind))
    mutation = part.headers if kind == "immediate_response" else part.response.header_mutation
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def destinations(answer: pb2.ProcessingResponse, kind: str = "request_headers") -> list[str]:
    """Returns where an answer sends a request; header and metadata must agree."""
    assert answer.WhichOneof("response") == kind
    told = set_headers(answer)["x-gateway-destination-endpoint"]
    entry = answer.dynamic_metadata.fields["envoy.lb"].struct_value
    assert entry.fields["x-gateway-destination-endpoint"].string_value == told
    return told.split(",")


class Exchange:
    """One HTTP exchange that a gateway carries."""

    def __init__(self, rig: Rig, metadata: Sequence[tuple[str, str]] = ()) -> None:
        """Opens its stream."""
        picker = rig.core.picker
        assert isinstance(picker, Picker)
        self._metadata = tuple(metadata)
        self._told: asyncio.Queue[pb2.ProcessingRequest | None] = asyncio.Queue()
        self._answers: asyncio.Queue[pb2.ProcessingResponse] = asyncio.Queue()
        call: Any = self
        self.stream = asyncio.ensure_future(picker.Process(self._messages(), call))

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns the call's metadata."""
        return self._metadata

    def peer(self) -> str:
        """Returns the gateway's address."""
        return "ipv4:127.0.0.1:50000"

    async def write(self, message: Answer) -> None:
        """Takes an answer, as bytes as on the wire."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        self._answers.put_nowait(pb2.ProcessingResponse.FromString(payload))

    async def _messages(self) -> AsyncIterator[pb2.ProcessingRequest]:
        while (message := await self._told.get()) is not None:
            yield message

    async def tell(self, message: pb2.ProcessingRequest) -> pb2.ProcessingResponse:
        """Sends a message; returns the answer to it, or raises what the stream ended with."""
        # As bytes, as on the wire.
        self._told.put_nowait(pb2.ProcessingRequest.FromString(message.SerializeToString()))
        answer = asyncio.ensure_future(self._answers.get())
        await asyncio.wait((answer, self.stream), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            await asyncio.sleep(0)
        if answer.done():
            return answer.result()
        answer.cancel()
        await self.stream
        raise AssertionError("the stream ended without an answer")

    def send(self, message: pb2.ProcessingRequest) -> None:
        """Sends a message that has no answer, or several."""
        self._told.put_nowait(pb2.ProcessingRequest.FromString(message.SerializeToString()))

    async def answers(self) -> list[pb2.ProcessingResponse]:
        """Returns what was answered meanwhile."""
        for _ in range(10):
            await asyncio.sleep(0)
        return [self._answers.get_nowait() for _ in range(self._answers.qsize())]

    async def close(self) -> None:
        """Says that nothing more comes, as a gateway does at the end of every exchange."""
        self._told.put_nowait(None)
        await self.stream

    async def reset(self) -> None:
        """Breaks the stream off."""
        self.stream.cancel()
        await asyncio.gather(self.stream, return_exceptions=True)
