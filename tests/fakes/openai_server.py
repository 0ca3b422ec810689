"""A server that speaks OpenAI as vLLM does, in process: a real HTTP server, answers by a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from services.common.access.tls import TlsSettings

_KNOWN = {
    "model", "prompt", "max_tokens", "temperature", "seed", "stream", "stream_options",
}  # fmt: skip


@dataclass
class Script:
    """How a model behaves.

    Attributes:
        tokens: Pieces of the answer.
        per_event: Tokens in an event.
        first_s: Time before the first piece, seconds.
        step_s: Time before each piece, seconds.
        status: HTTP status of every answer.
        gate: Opened by the test, lets the answer begin; None begins at once.
        hang: True never answers.
        fails_after: Pieces after which an error comes inside the stream; None for never.
        has_usage: Whether it counts tokens when asked to.
    """

    tokens: tuple[str, ...] = ("a", "b", "c")
    per_event: int = 1
    first_s: float = 0.0
    step_s: float = 0.0
    status: int = 200
    gate: asyncio.Event | None = None
    hang: bool = False
    fails_after: int | None = None
    has_usage: bool = True


@dataclass
class Received:
    """One request.

    Attributes:
        body: What was asked.
        headers: Its headers.
        client: Port that it came from: requests of one connection have the same.
        end: "done", "cancelled", or empty while it runs.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    client: int
    end: str = ""


@dataclass
class FakeOpenAI:
    """One endpoint; `scripts` by model name, `default` for the others.

    Attributes:
        models: Those that are loaded.
        api_key: Key that it wants; empty for none.
        is_ill: Whether its health says so.
        waiting: What its metrics say of the queue.
        tls: Its certificates, of whose root callers must show one; None means plain text.
    """

    models: tuple[str, ...] = ("m",)
    scripts: dict[str, Script] = field(default_factory=dict)
    default: Script = field(default_factory=Script)
    received: list[Received] = field(default_factory=list)
    api_key: str = ""
    is_ill: bool = False
    waiting: int = 0
    tls: TlsSettings | None = None
    pages: list[str] = field(default_factory=list)
    _server: uvicorn.Server | None = None
    _task: asyncio.Task[None] | None = None
    _place: tuple[str, int] = ("127.0.0.1", 0)

    @property
    def address(self) -> str:
        """Where it listens; the same over stop and start."""
        return f"{self._place[0]}:{self._place[1]}"

    async def start(self) -> FakeOpenAI:
        """Listens."""
        listening = socket.create_server(self._place)
        self._place = listening.getsockname()
        app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/v1/completions", self._completions, methods=["POST"]),
            ]
        )
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", **_shown(self.tls)
        )
        self._server = _InLoopServer(config)
        self._task = asyncio.create_task(self._server.serve([listening]))
        while not self._server.started:
            await asyncio.sleep(0.005)
        return self

    async def stop(self) -> None:
        """Goes away as a killed process would: answers break off."""
        if self._server is None or self._task is None:
            return
        self._server.should_exit = self._server.force_exit = True
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await self._task
        self._server = None

    async def _health(self, request: Request) -> Response:
        self.pages.append("/health")
        return Response(status_code=503 if self.is_ill else 200)

    async def _metrics(self, request: Request) -> Response:
        lines = [
            "# TYPE vllm:num_requests_waiting gauge",
            *(
                f'vllm:num_requests_waiting{{engine="0",model_name="{model}"}} {self.waiting:.1f}'
                for model in self.models
            ),
            f'vllm:num_requests_running{{engine="0",model_name="{self.models[0]}"}} 7.0',
        ]
        return PlainTextResponse("\n".join(lines) + "\n")

    async def _models(self, request: Request) -> Response:
        self.pages.append("/v1/models")
        if refusal := self._refusal_of_key(request):
            return refusal
        listed = [{"id": model, "object": "model", "owned_by": "vllm"} for model in self.models]
        return JSONResponse({"object": "list", "data": listed})

    async def _completions(self, request: Request) -> Response:
        if refusal := self._refusal_of_key(request):
            return refusal
        body = await request.json()
        entry = Received(body, dict(request.headers), request.client.port if request.client else 0)
        self.received.append(entry)
        unknown = body.keys() - _KNOWN
        if unknown:
            return _error(400, f"unknown field {min(unknown)}")
        if body["model"] not in self.models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if not isinstance(body["prompt"], str) or not body["prompt"]:
            return _error(422, "prompt: must not be empty")
        script = self.scripts.get(body["model"], self.default)
        if script.status != 200:
            return _error(script.status, f"says {script.status}")
        if not body.get("stream"):
            return await self._whole(entry, script)
        return _Stream(self._events(entry, script), media_type="text/event-stream")

    def _refusal_of_key(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "")
        if not self.api_key or given == f"Bearer {self.api_key}":
            return None
        return JSONResponse({"error": f"Unauthorized: {given}"}, 401)

    async def _whole(self, entry: Received, script: Script) -> Response:
        await self._wait(script)
        tokens = script.tokens[: entry.body["max_tokens"]]
        entry.end = "done"
        choice = {"index": 0, "text": "".join(tokens), "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": len(tokens), "total_tokens": 1}
        return JSONResponse({"choices": [choice], "usage": usage})

    async def _wait(self, script: Script) -> None:
        if script.hang:
            await asyncio.Event().wait()
        if script.gate is not None:
            await script.gate.wait()
        await asyncio.sleep(script.first_s)

    async def _events(self, entry: Received, script: Script) -> AsyncIterator[str]:
        try:
            await self._wait(script)
            tokens = script.tokens[: entry.body["max_tokens"]]
            for start in range(0, len(tokens), script.per_event):
                if script.fails_after is not None and start >= script.fails_after:
                    entry.end = "error"
                    yield _event({"error": {"message": "engine died", "code": 500}})
                    yield "data: [DONE]\n\n"
                    return
                await asyncio.sleep(script.step_s)
                yield _event(_choice("".join(tokens[start : start + script.per_event])))
            reason = "length" if len(tokens) == entry.body["max_tokens"] else "stop"
            yield _event(_choice("", reason))
            if script.has_usage and entry.body.get("stream_options", {}).get("include_usage"):
                usage = {"prompt_tokens": 1, "completion_tokens": len(tokens), "total_tokens": 1}
                yield _event({"choices": [], "usage": usage})
            entry.end = "done"
            yield "data: [DONE]\n\n"
        finally:
            entry.end = entry.end or "cancelled"


def _shown(tls: TlsSettings | None) -> dict[str, Any]:
    """Returns the options by which a server shows certificates, and asks for them."""
    if tls is None:
        return {}
    return {
        "ssl_certfile": tls.certificate, "ssl_keyfile": tls.key,
        "ssl_ca_certs": tls.root_certificates, "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }  # fmt: skip


class _Stream(StreamingResponse):
    """Ends the answer's generator where the client leaves while a piece is being sent."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        iterator: Any = self.body_iterator
        try:
            await super().__call__(scope, receive, send)
        finally:
            await iterator.aclose()


class _InLoopServer(uvicorn.Server):
    """Leaves signals to the test."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Captures none."""
        yield


@contextlib.asynccontextmanager
async def openai_server(**options: Any) -> AsyncIterator[FakeOpenAI]:
    """Runs one on a free port."""
    server = await FakeOpenAI(**options).start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def raw_server(*answers: bytes, is_kept: bool = False) -> AsyncIterator[str]:
    """Runs a server that answers its nth request with these bytes as they are; yields its address.

    Args:
        answers: What it says; after the last one the last is said again.
        is_kept: False closes the connection after each answer.
    """
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        # Cancelled where the test ends first.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(size or 0))
                answer = answers[min(count, len(answers) - 1)]
                count += 1
                writer.write(answer)
                await writer.drain()
                if not is_kept:
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        server.close()


def _choice(text: str, reason: str | None = None) -> dict[str, Any]:
    return {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
    }  # fmt: skip


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "X", "code": status}}, status)
