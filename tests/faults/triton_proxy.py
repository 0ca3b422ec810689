"""Stands between the mesh and a real Triton, and misbehaves on command."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as kserve

_ANSWERING = ("/ModelInfer", "/ModelStreamInfer")
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
)
Message = bytes


class TritonProxy(grpc.GenericRpcHandler):
    """Passes every call on as bytes.

    Attributes:
        slow_factor: How many times as long every answer takes; 1: as long as it takes.
        is_stuck: True answers nothing that is asked, and ends nothing.
        garbles: True sends nonsense in place of answers.
        cut_after: Messages of an answer after which its call breaks off; 0: never.
        refuses: True ends every call at once as unavailable.
        probes_too: Whether the misbehaviour is seen by health probes as well, or by requests only.
        faults: How often it misbehaved.
    """

    def __init__(self, target: str, *, seed: int = 1) -> None:
        """Listens to nothing yet; `target` is Triton's `host:port`."""
        self._target = target
        self._rng = random.Random(seed)
        self._kinds = itertools.cycle(_GARBAGE)
        self._goes_on = asyncio.Event()
        self.faults = 0
        self._port = 0
        self.mend()

    def mend(self) -> None:
        """Behaves from now on; what is stuck goes on."""
        self.slow_factor = 1.0
        self.garbles = self.refuses = False
        self.probes_too = True
        self.cut_after = 0
        self.is_stuck = False

    @property
    def is_stuck(self) -> bool:
        """True answers nothing that is asked, and ends nothing."""
        return not self._goes_on.is_set()

    @is_stuck.setter
    def is_stuck(self, is_stuck: bool) -> None:
        (self._goes_on.clear if is_stuck else self._goes_on.set)()

    @property
    def address(self) -> str:
        """Address to give to the mesh."""
        return f"127.0.0.1:{self._port}"

    async def start(self) -> TritonProxy:
        """Listens on a free port."""
        self._channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        self._port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return self

    async def close(self) -> None:
        """Ends every call."""
        self.mend()
        await self._server.stop(0.5)
        await self._channel.close()

    def service(self, details: Any) -> Any:
        """Returns the handler of any method at all."""
        method = details.method

        async def handle(requests: AsyncIterator[Message], context: Any) -> AsyncIterator[Message]:
            async for message in self._pass(method, requests, context):
                yield message

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _pass(
        self, method: str, requests: AsyncIterator[Message], context: Any
    ) -> AsyncIterator[Message]:
        answers = method.endswith(_ANSWERING)
        asked_s = [asyncio.get_running_loop().time()]
        method_call: Any = self._channel.stream_stream(method)
        call = method_call(
            self._asked(requests, asked_s, answers),
            timeout=context.time_remaining(),
            metadata=_passed_on(context.invocation_metadata()),
        )
        try:
            async for message in self._answers(call, asked_s, answers, context):
                yield message
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        finally:
            call.cancel()

    async def _answers(
        self, call: Any, asked_s: list[float], answers: bool, context: Any
    ) -> AsyncIterator[Message]:
        loop = asyncio.get_running_loop()
        count, first_s = 0, 0.0
        if self.refuses and self._hits(answers):
            await self._broken(context)
        async for came_s, message in _stamped(call):
            if self._hits(answers):
                if asked_s[0] != first_s:
                    first_s, count = asked_s[0], 0
                count += 1
                if self.slow_factor > 1.0:
                    self.faults += 1
                    due_s = first_s + self.slow_factor * (came_s - first_s)
                    await asyncio.sleep(due_s - loop.time())
                if self.is_stuck:
                    self.faults += 1
                    await self._goes_on.wait()
                if self.refuses or 0 < self.cut_after < count:
                    await self._broken(context)
                if self.garbles:
                    self.faults += 1
                    message = next(self._kinds)(message, self._rng)
            yield message

    async def _asked(
        self, requests: AsyncIterator[Message], asked_s: list[float], answers: bool
    ) -> AsyncIterator[Message]:
        async for message in requests:
            if self.is_stuck and self._hits(answers):
                self.faults += 1
                await self._goes_on.wait()
            asked_s[0] = asyncio.get_running_loop().time()
            yield message

    async def _broken(self, context: Any) -> None:
        self.faults += 1
        await context.abort(grpc.StatusCode.UNAVAILABLE, "broken off on purpose")

    def _hits(self, answers: bool) -> bool:
        return answers or self.probes_too


async def _stamped(call: Any) -> AsyncIterator[tuple[float, Message]]:
    """Yields each message with the time at which it came, however late it is asked for."""
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[tuple[float, Message] | grpc.aio.AioRpcError | None] = asyncio.Queue()

    async def read() -> None:
        end = None
        try:
            async for message in call:
                came.put_nowait((loop.time(), message))
        except grpc.aio.AioRpcError as error:
            end = error
        finally:
            came.put_nowait(end)

    reading = asyncio.create_task(read())
    try:
        while (each := await came.get()) is not None:
            if isinstance(each, grpc.aio.AioRpcError):
                raise each
            yield each
    finally:
        reading.cancel()


def _passed_on(metadata: Any) -> list[tuple[str, str]]:
    """Metadata without what the next call sets itself."""
    return [
        (key, value)
        for key, value in metadata or ()
        if not key.startswith(("grpc-", "user-agent", "te", "content-type"))
    ]


def _noise(message: Message, rng: random.Random) -> Message:
    """Bytes that are no message."""
    return rng.randbytes(max(1, len(message)))


def _foreign(message: Message, rng: random.Random) -> Message:
    """An answer to a request that nobody sent."""
    return _changed(message, lambda answer: setattr(answer, "id", str(rng.random())))


def _boundless(message: Message, rng: random.Random) -> Message:
    """More tokens, in more bytes, than there are."""
    return _with_output(message, "num_output_tokens", b"\xff" * 100_000)


def _misstated(message: Message, rng: random.Random) -> Message:
    """A text that states another length than it has."""
    return _with_output(message, "text_output", rng.randbytes(40))


_GARBAGE: tuple[Callable[[Message, random.Random], Message], ...] = (
    _noise, _foreign, _boundless, _misstated,
)  # fmt: skip


def _with_output(message: Message, name: str, raw: bytes) -> Message:
    def change(answer: Any) -> None:
        answer.outputs.add(name=name, datatype="BYTES", shape=[1])
        answer.raw_output_contents.append(raw)

    return _changed(message, change)


def _changed(message: Message, change: Callable[[Any], None]) -> Message:
    """The message with its answer changed; one that is no answer of a stream becomes noise."""
    parsed = kserve.ModelStreamInferResponse()
    with contextlib.suppress(Exception):
        parsed.ParseFromString(message)
        change(parsed.infer_response)
        return bytes(parsed.SerializeToString())
    return b"\xff" * len(message)
