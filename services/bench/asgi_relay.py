"""A bare relay from HTTP to a router, to measure the OpenAI-shaped door beside.

`python -m services.bench.asgi_relay ADDRESS --ready-file FILE`. What it must do for an answer it
does and no more: parse the JSON, call the router, write the text as JSON or as events. It checks
nothing, knows no deadline, no key and no trace, and watches for nobody who leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import signal
import socket
from typing import Any

import grpc.aio
import uvicorn
import uvloop

from services.bench.peers import write_ready
from services.bench.routers import TASK
from services.common.channels import STRAIGHT
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

_TIMEOUT_S = 10.0


class Relay:
    """The ASGI application."""

    def __init__(self, address: str) -> None:
        """Opens a channel to the router."""
        channel = grpc.aio.insecure_channel(address, options=STRAIGHT)
        self._stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)

    async def __call__(self, _: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        asked = json.loads((await receive())["body"])
        spec = pb2.GenerationSpec(prompt=asked["messages"][0]["content"], task=TASK)
        if asked.get("stream"):
            await self._stream(pb2.GenerateStreamRequest(spec=spec), send)
            return
        reply = await self._stub.Generate(pb2.GenerateRequest(spec=spec), timeout=_TIMEOUT_S)
        message = {"role": "assistant", "content": reply.text}
        body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        length = (b"content-length", str(len(body)).encode())
        headers = [(b"content-type", b"application/json"), length]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, request: pb2.GenerateStreamRequest, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async for piece in self._stub.GenerateStream(request, timeout=_TIMEOUT_S):
            choice = {"index": 0, "delta": {"content": piece.chunk.text}}
            event = f"data: {json.dumps({'choices': [choice]})}\n\n".encode()
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def serve(address: str, ready: pathlib.Path) -> None:
    """Serves until SIGTERM or SIGINT."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        Relay(address), http="httptools", loop="none", lifespan="off", ws="none",
        access_log=False, log_level="critical",
    )  # fmt: skip
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, setattr, server, "should_exit", True)
    write_ready(ready, listener.getsockname()[1])
    await server._serve([listener])  # what `serve` does, but for the signals


def main() -> None:
    """Runs the relay."""
    parser = argparse.ArgumentParser(prog="python -m services.bench.asgi_relay")
    parser.add_argument("address")
    parser.add_argument("--ready-file", required=True, type=pathlib.Path)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(options.address, options.ready_file))


if __name__ == "__main__":
    main()
