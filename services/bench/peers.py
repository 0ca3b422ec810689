"""Bare servers to measure the mesh beside: `python -m services.bench.peers KIND [ARGUMENT] ...`.

`backend COUNT[/EACH[/SECONDS]]`: a fake Triton that answers with so many tokens, so many (one) in
each message, so long (0) between two messages, half a second where the prompt says `slow`.
`echo [SIZE]`: a unary grpc.aio method that returns its request, or so many bytes. `proxy ADDRESS`:
a grpc.aio pass-through in front of a backend, bytes in and out, nothing parsed. `traces`: takes
OTLP over HTTP and forgets it. `chat [COUNT[/SECONDS]]`: answers any HTTP POST with so many (8)
tokens, so long (0) between two of a stream: as Triton does at its own paths, elsewhere as servers
that speak OpenAI. `router COUNT`: a router that serves, and answers any request at once with so
many tokens. `picker`: an endpoint picker for gateways whose answers are constant, bytes in and out,
nothing parsed. Each writes its address into its ready file and serves until it is told to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
import uvloop
from tritonclient.grpc import service_pb2 as kserve

from services.bench.http_peers import chat, http_answer
from services.common.channels import STRAIGHT
from tiercel.envoy.v3 import external_processor_pb2 as envoy_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

KSERVE = "/inference.GRPCInferenceService"
INFER, INFER_WHOLE = f"{KSERVE}/ModelStreamInfer", f"{KSERVE}/ModelInfer"
READY = b"\x08\x01"
"""The answer of ServerLive, ServerReady and ModelReady that says yes."""
UNARY, STREAM = "/bench.Bench/Generate", "/bench.Bench/GenerateStream"
ANY_ID = b"x" * 32
SLOW, SLOW_INTERVAL_S = b"slow ", 0.5
PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
KINDS = ("backend", "echo", "proxy", "traces", "chat", "router", "picker")
ROUTER = "/tiercel.router_inference.v1.RouterInferenceService"
_END: Any = grpc.aio.EOF  # type: ignore[attr-defined]


class Handlers(grpc.GenericRpcHandler):
    """Serves methods by name, bytes in and out."""

    def __init__(self, methods: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Takes the methods by full name."""
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Returns the method's handler."""
        return self._methods.get(details.method)


def question() -> bytes:
    """Returns the request that a pass-through sends on, whatever it was asked."""
    request = kserve.ModelInferRequest(model_name="small", id=ANY_ID.decode())
    request.raw_input_contents.append(b"x" * 480)
    return bytes(request.SerializeToString())


def kserve_request(prompt: str, task: str, token_count: int, *, stream: bool) -> bytes:
    """Returns what a client of Triton asks the router's KServe door."""
    request = kserve.ModelInferRequest(model_name="tiercel", id="1")
    request.parameters["tiercel_task"].string_param = task
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    texts = {"text_input": prompt, "sampling_parameters": json.dumps({"max_tokens": token_count})}
    for name, text in texts.items():
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        raw = text.encode()
        request.raw_input_contents.append(len(raw).to_bytes(4, "little") + raw)
    for name, value in {"stream": stream, "exclude_input_in_output": True}.items():
        request.inputs.add(name=name, datatype="BOOL", shape=[1])
        request.raw_input_contents.append(bytes([value]))
    return bytes(request.SerializeToString())


def answer(token_count: int, each: int = 1) -> list[bytes]:
    """Returns the messages of one answer: pieces of `each` tokens, then the final one."""
    messages = []
    text = b"word " * each
    for index in range(token_count // each + 1):
        response = kserve.ModelInferResponse(model_name="small", id=ANY_ID.decode())
        is_final = index == token_count // each
        response.parameters["triton_final_response"].bool_param = is_final
        fields = [
            ("text_output", "BYTES", len(text).to_bytes(4, "little") + text),
            ("num_output_tokens", "UINT32", each.to_bytes(4, "little")),
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


def backend(tokens: str) -> Handlers:
    """Returns a fake Triton; `tokens` is `COUNT[/EACH[/SECONDS]]`."""
    count, each, pause = f"{tokens}//".split("/")[:3]
    pause_s = float(pause or 0.0)
    messages = answer(int(count), int(each or 1))

    async def infer(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            wait_s = SLOW_INTERVAL_S if SLOW in request else pause_s
            own_id = kserve.ModelInferRequest.FromString(request).id.encode()
            for number, message in enumerate(messages):
                if number and wait_s:
                    await asyncio.sleep(wait_s)
                yield message.replace(ANY_ID, own_id)

    async def yes(_: bytes, __: Any) -> bytes:
        return READY

    async def nothing(_: bytes, __: Any) -> bytes:
        return b""

    probes = dict.fromkeys(("ServerLive", "ServerReady", "ModelReady"), yes)
    probes |= dict.fromkeys(("ModelStatistics", "ModelConfig"), nothing)
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        f"{KSERVE}/{name}": grpc.unary_unary_rpc_method_handler(answered)
        for name, answered in probes.items()
    }
    return Handlers({INFER: grpc.stream_stream_rpc_method_handler(infer), **methods})


def echo(size: str) -> Handlers:
    """Returns an echo; with a size every answer has so many bytes."""
    sized = bytes(int(size)) if size else b""

    async def same(request: bytes, _: Any) -> bytes:
        return sized or request

    return Handlers({UNARY: grpc.unary_unary_rpc_method_handler(same)})


def proxy(address: str) -> Handlers:
    """Returns a pass-through: whatever comes, one fixed request goes to the backend."""
    channel = grpc.aio.insecure_channel(address, options=STRAIGHT)
    infer: Any = channel.stream_stream(INFER)
    payload = question()

    async def pieces(context: Any) -> AsyncIterator[bytes]:
        call = infer(timeout=context.time_remaining())
        await call.write(payload)
        await call.done_writing()
        while (message := await call.read()) is not _END:
            yield message

    async def unary(_: bytes, context: Any) -> bytes:
        return b"".join([piece async for piece in pieces(context)])

    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        async for piece in pieces(context):
            yield piece

    return Handlers(
        {
            UNARY: grpc.unary_unary_rpc_method_handler(unary),
            STREAM: grpc.unary_stream_rpc_method_handler(stream),
        }
    )


def router(tokens: str) -> Handlers:
    """Returns a router that answers every request alike."""
    completion = pb2.Completion(
        request_id="x", tier="small", endpoint="e0", policy="price", policy_version="1",
        on_time=True, quality=0.75, output_token_count=int(tokens), finish_reason="stop",
    )  # fmt: skip
    completion.timings.total.FromMilliseconds(100)
    whole = pb2.GenerateResponse(text="word " * int(tokens), completion=completion)
    chunk = pb2.GenerateStreamResponse(chunk=pb2.Chunk(text="word ", token_count=1))
    end = pb2.GenerateStreamResponse(completion=completion)
    answer_bytes, pieces = whole.SerializeToString(), [chunk.SerializeToString()] * int(tokens)
    pieces.append(end.SerializeToString())

    async def generate(_: bytes, __: Any) -> bytes:
        return answer_bytes

    async def stream(_: bytes, __: Any) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def check(_: bytes, __: Any) -> bytes:
        return b"\x08\x01"  # SERVING

    return Handlers(
        {
            f"{ROUTER}/Generate": grpc.unary_unary_rpc_method_handler(generate),
            f"{ROUTER}/GenerateStream": grpc.unary_stream_rpc_method_handler(stream),
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(check),
        }
    )


def picker() -> Handlers:
    """Returns a picker that sends every request to one address, and takes note of nothing."""
    address = b"127.0.0.1:8000"
    first, last = envoy_pb2.ProcessingResponse(), envoy_pb2.ProcessingResponse()
    mutation = first.request_headers.response.header_mutation
    mutation.set_headers.add().header.key = "x-gateway-destination-endpoint"
    mutation.set_headers[0].header.raw_value = address
    told = {"x-gateway-destination-endpoint": address.decode()}
    first.dynamic_metadata.update({"envoy.lb": told})
    last.response_trailers.SetInParent()
    answers = (first.SerializeToString(), last.SerializeToString())

    async def process(requests: AsyncIterator[bytes], context: Any) -> None:
        number = 0
        async for _ in requests:
            await context.write(answers[min(number, 1)])
            number += 1

    return Handlers({PROCESS: grpc.stream_stream_rpc_method_handler(process)})


async def serve(kind: str, argument: str, ready: pathlib.Path) -> None:
    """Serves until SIGTERM or SIGINT."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    if kind in ("traces", "chat"):
        handler = chat(argument) if kind == "chat" else http_answer(b"")
        http = await asyncio.start_server(handler, "127.0.0.1", 0)
        port = http.sockets[0].getsockname()[1]
    else:
        made: dict[str, Callable[[], Handlers]] = {
            "backend": lambda: backend(argument),
            "echo": lambda: echo(argument),
            "proxy": lambda: proxy(argument),
            "router": lambda: router(argument),
            "picker": picker,
        }
        server: grpc.aio.Server = grpc.aio.server()
        server.add_generic_rpc_handlers((made[kind](),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
    write_ready(ready, port)
    await ended.wait()


def write_ready(ready: pathlib.Path, port: int) -> None:
    """Writes a ready file; readers never see half of it."""
    whole = ready.with_suffix(".tmp")
    whole.write_text(json.dumps({"addresses": {"grpc": f"127.0.0.1:{port}"}}), encoding="utf-8")
    whole.replace(ready)


def main() -> None:
    """Runs one server."""
    parser = argparse.ArgumentParser(prog="python -m services.bench.peers", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("argument", nargs="?", default="")
    parser.add_argument("--ready-file", required=True, type=pathlib.Path)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.kind, options.argument, options.ready_file))


if __name__ == "__main__":
    main()
