"""What a worker asks its siblings: calls that concern another worker, or all of them.

A call reaches whichever worker the connection belongs to. What only another one knows (a ticket, a
request to be explained) or what all must do (use a policy) goes to the others through the parent.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Awaitable, Callable, Iterable

from services.router_inference.workers import frames

ALL = 0
"""Number that stands for all other workers, of which the first answer counts."""
EACH = 255
"""Number that stands for all other workers, whose answers are joined as messages are."""
ANSWER_S = 1.0
"""Longest wait for an answer of the siblings."""

_HEAD = struct.Struct("<IB")

Answerer = Callable[[str, str, bytes], Awaitable[bytes | None]]
"""Takes method, client and message; returns an answer, or None for none."""


class Exchange:
    """One worker's part in it."""

    def __init__(self) -> None:
        """Knows nobody yet; `connect` and `answer_with` do the rest."""
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._send: Callable[[bytes], None] = lambda _: None
        self._answers: dict[str, Answerer] = {}

    def connect(self, send: Callable[[bytes], None]) -> None:
        """Takes what sends a frame to the parent."""
        self._send = send

    def answer_with(self, answer: Answerer, methods: Iterable[str]) -> None:
        """Takes what answers the siblings' questions of some methods."""
        self._answers |= dict.fromkeys(methods, answer)

    async def ask(self, to: int, method: str, client: str, message: bytes) -> bytes | None:
        """Returns the answer of a worker, `ALL` or `EACH`; None if there was none in time."""
        number = next(self._ids)
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        body = b"\0".join((method.encode(), client.encode(), message))
        self._send(frames.frame(frames.ASK, _HEAD.pack(number, to) + body))
        try:
            async with asyncio.timeout(ANSWER_S):
                return await future
        except TimeoutError:
            return None
        finally:
            del self._waiting[number]

    def on_answer(self, payload: bytes) -> None:
        """Takes the answer to one of the own questions."""
        number, answer = read_answer(payload)
        future = self._waiting.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def on_ask(self, payload: bytes) -> None:
        """Answers a sibling's question."""
        task = asyncio.ensure_future(self._reply(payload))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _reply(self, payload: bytes) -> None:
        number, _, body = read_ask(payload)
        method, client, message = body.split(b"\0", 2)
        found: bytes | None = None
        try:
            answer = self._answers.get(method.decode())
            if answer is not None:
                found = await answer(method.decode(), client.decode(), message)
        finally:
            self._send(frames.frame(frames.ANSWER, answer_bytes(number, found)))


def read_ask(payload: bytes) -> tuple[int, int, bytes]:
    """Returns a question's number, whom it is for, and its body."""
    number, to = _HEAD.unpack_from(payload)
    return number, to, payload[_HEAD.size :]


def ask_bytes(number: int, body: bytes) -> bytes:
    """Returns the payload of a question that the parent passes on."""
    return _HEAD.pack(number, ALL) + body


def answer_bytes(number: int, answer: bytes | None) -> bytes:
    """Returns the payload of an answer, or of there being none."""
    return _HEAD.pack(number, answer is not None) + (answer or b"")


def read_answer(payload: bytes) -> tuple[int, bytes | None]:
    """Returns the number of the question, and the answer or None."""
    number, has_answer = _HEAD.unpack_from(payload)
    return number, payload[_HEAD.size :] if has_answer else None
