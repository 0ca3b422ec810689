"""The HTTP of `services.bench.peers`: one answer for everybody, or answers of tokens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]
"""Answers the requests of one HTTP/1.1 connection."""
_TRITON = b"/v2/"
"""How the paths of Triton's HTTP begin."""
_WANTS_STREAM = re.compile(rb'"stream":\s*true')
_EVENTS_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def http_answer(body: bytes) -> Handler:
    """Returns a handler of HTTP/1.1 connections that answers every POST with a body."""
    return _http(lambda _, __: [_whole(body)], 0.0)


def chat(tokens: str) -> Handler:
    """Returns one that answers with tokens; `tokens` is empty or `COUNT[/SECONDS]`."""
    count, _, pause = (tokens or "8").partition("/")
    answers: dict[tuple[bytes, bool], list[bytes]] = {}

    def pieces(path: bytes, asked: bytes) -> list[bytes]:
        is_stream = _WANTS_STREAM.search(asked) is not None
        made = answers.get((path, is_stream))
        if made is None:
            made = answers[path, is_stream] = completion(path, int(count), is_stream=is_stream)
        return made

    return _http(pieces, float(pause or 0.0))


def completion(path: bytes, count: int, *, is_stream: bool) -> list[bytes]:
    """Returns the bytes of one answer of so many tokens: in one piece, or in one for each token."""
    usage = {"prompt_tokens": 96, "completion_tokens": count, "total_tokens": 96 + count}
    if not is_stream:
        return [_whole(json.dumps(_said(path, "message", count, usage)).encode())]
    token, last = _said(path, "delta", 1, None), _said(path, "delta", 0, usage)
    ends = [] if path.startswith(_TRITON) else [json.dumps(last).encode(), b"[DONE]"]
    end = b"".join(map(_event, ends)) + b"0\r\n\r\n"
    first, *others = [_event(json.dumps(token).encode())] * count
    return [_EVENTS_HEAD + first, *others, end]


def _said(path: bytes, kind: str, count: int, usage: Mapping[str, int] | None) -> dict[str, Any]:
    """Returns what a server says that has made so many tokens; with usage the answer ends."""
    text = "word " * count
    if path.startswith(_TRITON):
        return {"model_name": "small", "model_version": "1", "text_output": text}
    is_chat = path.endswith(b"/chat/completions")
    said = {kind: {"role": "assistant", "content": text}} if is_chat else {"text": text}
    choice = {"index": 0, **said, "finish_reason": "stop" if usage else None}
    found = {"id": "x", "object": "chat.completion", "created": 1, "model": "fake"}
    return {**found, "choices": [choice], **({"usage": usage} if usage else {})}


def _whole(body: bytes) -> bytes:
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    return head.encode() + str(len(body)).encode() + b"\r\n\r\n" + body


def _event(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _http(answer_of: Callable[[bytes, bytes], Sequence[bytes]], pause_s: float) -> Handler:
    """Returns a handler of connections, by what answers path and body of a POST."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                _, _, rest = asked.lower().partition(b"content-length:")
                body = await reader.readexactly(int(rest.split(b"\r\n")[0]))
                for number, piece in enumerate(answer_of(asked.split(b" ", 2)[1], body)):
                    if number and pause_s:
                        await asyncio.sleep(pause_s)
                    writer.write(piece)
        writer.close()

    return handle
