"""Bare servers to measure the router beside: `python -m tests.bench.router_peers KIND ...`.

`backend`: a fake Triton that answers at once. `echo`: a unary grpc.aio method that returns its
request. `proxy`: a grpc.aio pass-through in front of the backend, bytes in and out, nothing parsed.
Every one prints its address on its first line and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2 as kserve

from tests.fakes.otlp_sink import OtlpSink

INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
UNARY, STREAM = "/bench.Bench/Generate", "/bench.Bench/GenerateStream"


def answer(token_count: int) -> list[bytes]:
    """Returns the messages of one answer: a piece per token, then the final one."""
    messages = []
    for index in range(token_count + 1):
        response = kserve.ModelInferResponse(model_name="small", id="x" * 32)
        is_final = index == token_count
        response.parameters["triton_final_response"].bool_param = is_final
        fields = [
            ("text_output", "BYTES", b"\x05\x00\x00\x00word "),
            ("num_output_tokens", "UINT32", b"\x01\x00\x00\x00"),
        ]
        if is_final:
            fields = [("finish_reason", "BYTES", b"\x04\x00\x00\x00stop")]
        for name, datatype, raw in fields:
            response.outputs.add(name=name, datatype=datatype, shape=[1])
            response.raw_output_contents.append(raw)
        messages.append(
            kserve.ModelStreamInferResponse(infer_response=response).SerializeToString()
        )
    return messages


class Handlers(grpc.GenericRpcHandler):
    """Serves methods by name, bytes in and out."""

    def __init__(self, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Returns the method's handler."""
        return self._methods.get(details.method)


def backend(token_count: int) -> Handlers:
    """Returns a fake Triton."""
    messages = answer(token_count)

    async def infer(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        await anext(aiter(requests))
        for message in messages:
            yield message

    return Handlers({INFER: grpc.stream_stream_rpc_method_handler(infer)})


def echo() -> Handlers:
    """Returns an echo."""

    async def same(request: bytes, _: Any) -> bytes:
        return request

    return Handlers({UNARY: grpc.unary_unary_rpc_method_handler(same)})


def proxy(address: str) -> Handlers:
    """Returns a pass-through: whatever comes, one fixed request goes to the backend."""
    channel = grpc.aio.insecure_channel(address)
    infer: Any = channel.stream_stream(INFER)
    request = kserve.ModelInferRequest(model_name="small", id="x" * 32)
    request.raw_input_contents.append(b"x" * 480)
    payload = request.SerializeToString()
    end: Any = grpc.aio.EOF  # type: ignore[attr-defined]

    async def unary(_: bytes, context: Any) -> bytes:
        call = infer(timeout=context.time_remaining())
        await call.write(payload)
        await call.done_writing()
        parts = []
        while (message := await call.read()) is not end:
            parts.append(message)
        return b"".join(parts)

    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        call = infer(timeout=context.time_remaining())
        await call.write(payload)
        await call.done_writing()
        while (message := await call.read()) is not end:
            yield message

    return Handlers(
        {
            UNARY: grpc.unary_unary_rpc_method_handler(unary),
            STREAM: grpc.unary_stream_rpc_method_handler(stream),
        }
    )


async def main(kind: str, argument: str) -> None:
    """Serves until standard input ends."""
    server = grpc.aio.server()
    made: dict[str, Callable[[], Handlers]] = {
        "backend": lambda: backend(int(argument)),
        "echo": echo,
        "proxy": lambda: proxy(argument),
    }
    handlers = made[kind]()
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sink = OtlpSink() if kind == "backend" else None
    print(f"127.0.0.1:{port}", sink.endpoint if sink else "", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.1)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""))
