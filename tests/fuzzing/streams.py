"""Wrong answers of servers that speak OpenAI, to the client that routers ask them by (`make fuzz`).

Made by the grammar of such answers: events with what servers send and must not, lines in every form
that the standard of server-sent events allows, HTTP with its statuses, encodings and framings, cut
at any byte. Whatever comes, an answer is a success only if the server said that it is complete, and
then its text is the server's; a right answer is one; else it is a TierError. Nothing is logged as a
bug, nothing hangs, and no connection is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.common.openai.client import OpenAIClient
from services.common.tiers.errors import TierError
from tests.fuzzing.bugs import Bugs
from tests.fuzzing.octets import VALUES, changed_bytes, changed_document
from tests.waiting import until

DONE = b"[DONE]"
LIMIT_TOKENS = 64
_ANSWER_S = 15.0
_HELD_S = 0.1
"""How long an answer is waited for that never ends."""
_PROBE_EVERY = 200
_MOST_PROBLEMS = 20
_IDLE = 2
_TYPES = (
    b"text/plain",
    b"application/json",
    b"text/html; charset=utf-8",
    b"",
    b"text/event-streams",
)
_STATUSES = (100, 102, 103, 204, 206, 301, 302, 304, 400, 401, 404, 418, 429, 500, 502, 503, 599)
_TEXTS = ("", "a", "é", "\U0001f600", "\n", '"', "data: [DONE]\n\n", "x" * 3_000, "\ud83d", "\r")


@dataclass(frozen=True)
class Sent:
    """What a server sends.

    Attributes:
        pieces: in these pieces.
        is_stream: whether a stream was asked for.
        closes: whether it closes the connection then, else it says no more.
        text: the answer, where it may be taken for complete; None where it may not.
        is_right: whether it must be taken.
        is_known: whether `text` is known: it is not where the headers were changed as bytes.
    """

    pieces: tuple[bytes, ...]
    is_stream: bool
    closes: bool
    text: str | None
    is_right: bool
    is_known: bool = True


# ---- what an answer means, read as a whole and in the plainest way ----


def events_of(body: bytes) -> list[bytes]:
    """Returns the data of the events of a whole stream, by the standard's rules."""
    text = body.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    found: list[bytes] = []
    data: list[bytes] = []
    for line in text.split(b"\n")[:-1]:
        name, _, value = line.partition(b":")
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return found


def meaning_of(events: Sequence[bytes], *, has_ended: bool) -> str | None:
    """Returns the text of an answer that may be taken for complete; else None.

    Args:
        events: The data of its events.
        has_ended: Whether the message around them came to its own end.
    """
    text, is_finished = "", False
    for data in events:
        if data == DONE:
            return text if is_finished else None
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            return None
        if not isinstance(event, dict) or event.get("error") is not None:
            return None
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            return None
        more, reason = choice.get("text"), choice.get("finish_reason")
        text += more if isinstance(more, str) else ""
        is_finished = is_finished or (isinstance(reason, str) and bool(reason))
    return text if is_finished and has_ended else None


# ---- how answers are made ----


def _event(text: str | None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], **more}


def _right(rng: random.Random) -> list[Any]:
    """Returns the events of a right answer."""
    texts = [
        rng.choice(_TEXTS[:-2] if rng.random() < 0.9 else _TEXTS) for _ in range(rng.randrange(6))
    ]
    events: list[Any] = [_event(text) for text in texts]
    last = rng.choice(("", "z", None))
    events.append(_event(last, rng.choice(("stop", "length"))))
    if rng.random() < 0.5:
        count = len(texts) + 1
        events.append({"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 1}})
    if rng.random() < 0.8:
        events.append(DONE)
    return events


def _spoilt(events: list[Any], rng: random.Random) -> list[Any]:
    """Returns the events with something that no right answer has, or has elsewhere."""
    place = rng.randrange(len(events) + 1)
    error = {
        "message": "engine died",
        "type": "X",
        "code": rng.choice((500, "e", None, 429, 10**30)),
    }
    odd: tuple[Any, ...] = (
        DONE, DONE + b" ", b"", b"{", b"null", b"7", b"[]", b'"a"', b"\xff\xfe{}", b"[" * 5_000,
        {"error": error}, {"error": "text"}, {"object": "error", "message": "m"}, {"error": None},
        {"choices": None}, {}, {"choices": []}, {"choices": [None]}, {"choices": {}},
        {"choices": [{"delta": {"content": "chat"}}]}, {"choices": [{"text": 7}]},
        {"choices": [{"text": "t", "finish_reason": 1}]}, {"usage": None, "choices": None},
        {"usage": {"completion_tokens": rng.choice(VALUES)}}, {"usage": [1]},
        _event("", ""), _event("w", "abort"), _event("x" * 400_000), _event("v", "stop"),
        b'{"choices":[{"text":"\xff\xc3"}]}', b'{"choices":[{"text":"\xed\xa0\x80"}]}',
    )  # fmt: skip
    how = rng.randrange(7)
    if how == 0:
        return events[:place]
    if how == 1:
        return [each for number, each in enumerate(events) if number != place]
    if how == 2:
        # As some servers say that there is more to come.
        return [_unfinished(each, rng.choice(("", None))) for each in events]
    if how == 3:
        documents = [number for number, each in enumerate(events) if isinstance(each, dict)]
        if documents:
            number = rng.choice(documents)
            events[number] = changed_document(events[number], rng)
        return events
    if how == 4:
        rng.shuffle(events)
        return events
    return [*events[:place], *[rng.choice(odd)] * rng.choice((1, 1, 1, 2, 40)), *events[place:]]


def _unfinished(event: Any, reason: str | None) -> Any:
    """Returns an event with another finish_reason, where it has one."""
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return event
    return {**event, "choices": [{**choices[0], "finish_reason": reason}]}


def _lines_of(events: Sequence[Any], rng: random.Random) -> bytes:
    """Writes events in one of the forms that the standard allows."""
    ends = rng.choice(((b"\n",), (b"\n",), (b"\r\n",), (b"\r",), (b"\n", b"\r\n", b"\r")))
    between = (b": ping", b"event: message", b"id: 3", b"retry: 10", b"other: x", b"noname", b":")
    lines: list[bytes] = []
    for event in events:
        indent = 1 if rng.random() < 0.1 else None
        data = event if isinstance(event, bytes) else _json(event, indent)
        if rng.random() < 0.2:
            lines.append(rng.choice(between))
            lines += [b""] * rng.randrange(2)
        mark = rng.choice((b"data: ", b"data:"))
        lines += [mark + line for line in data.split(b"\n")]
        lines += [b""] * rng.choice((1, 1, 1, 2))
    written = b"\xef\xbb\xbf" if rng.random() < 0.05 else b""
    for line in lines:
        end = rng.choice(ends)
        # After a CR, a LF ends no line of its own.
        written += line + (b"\r" if not line and written.endswith(b"\r") else end)
    return written


def _json(event: Any, indent: int | None = None) -> bytes:
    text = json.dumps(event, indent=indent, ensure_ascii=True)
    if indent is None and "\\ud" not in text.lower():
        text = json.dumps(event, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _head(status: int, content_type: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d X" % status, b"Server: y", *headers]
    if content_type:
        lines.append(b"Content-Type: " + content_type)
    return b"\r\n".join(lines) + b"\r\n\r\n"


Segments = list[tuple[bytes, bool]]
"""Bytes of the wire, and whether they are of the body."""


def _chunked(body: bytes, rng: random.Random) -> Segments:
    """Frames a body as chunks of any size."""
    most = rng.choice((1, 3, 50, 5_000)) if len(body) < 20_000 else 60_000
    segments: Segments = []
    while body:
        size = rng.randint(1, most)
        piece, body = body[:size], body[size:]
        more = b";a=b" if rng.random() < 0.05 else b""
        segments += [(b"%x%s\r\n" % (len(piece), more), False), (piece, True), (b"\r\n", False)]
    trailer = b"X-T: 1\r\n" if rng.random() < 0.1 else b""
    return [*segments, (b"0\r\n" + trailer + b"\r\n", False)]


def _with_fault(segments: Segments, rng: random.Random) -> Segments:
    """Returns chunks with one that is no chunk; what follows it is of no body."""
    sizes = [number for number, (_, is_body) in enumerate(segments) if is_body]
    if not sizes:
        return segments[:-1]
    place = rng.choice(sizes)
    piece = segments[place][0]
    before, rest = segments[: place - 1], [(each, False) for each, _ in segments[place + 1 :]]
    how = rng.randrange(5)
    if how == 0:
        wrong = rng.choice((b"zz", b"-1", b"f" * 17, b"", b" ", b"0x5", b"1" * 40_000))
        return [*before, (wrong + b"\r\n" + piece, False), *rest]
    if how == 1 and len(piece) > 1:  # a byte more than was said
        return [
            *before,
            (b"%x\r\n" % (len(piece) - 1), False),
            (piece[:-1], True),
            (piece[-1:], False),
            *rest,
        ]
    if how == 2:  # a byte less: the line's end is taken for it
        return [
            *before,
            (b"%x\r\n" % (len(piece) + 1), False),
            (piece + b"\r", True),
            (b"\n", False),
            *rest,
        ]
    if how == 3:  # no line's end
        return [*before, *segments[place - 1 : place + 1], (b"!", False), *rest]
    return [*segments[: place + 2], (b"5\r\n", False)]


def right_stream(rng: random.Random) -> bytes:
    """Draws the events of a right answer."""
    return _lines_of(_right(rng), rng)


def wrong_stream(rng: random.Random) -> bytes:
    """Draws the events of a wrong one."""
    return _lines_of(_spoilt(_right(rng), rng), rng)


def answer_of(rng: random.Random) -> Sent:
    """Draws an answer."""
    is_stream = rng.random() < 0.9
    events = _right(rng)
    is_right = rng.random() < 0.35
    if not is_right:
        for _ in range(rng.choice((0, 1, 1, 2))):
            events = _spoilt(events, rng)
    if is_stream:
        body, wanted = _lines_of(events, rng), b"text/event-stream"
        if rng.random() < 0.3 and is_right:
            wanted = rng.choice((b"text/event-stream; charset=utf-8", b"Text/Event-Stream"))
    else:
        body, wanted = _whole(events, rng), b"application/json"
    if not is_right and rng.random() < 0.2:
        body = changed_bytes(body, rng)
    return _sent(body, wanted, rng, is_stream=is_stream, is_right=is_right)


def _whole(events: Sequence[Any], rng: random.Random) -> bytes:
    """Writes an answer in one piece: all of the events' text, and the last event's reason."""
    documents = [each for each in events if isinstance(each, dict)]
    whole = documents[-1] if documents else {}
    if all(isinstance(each.get("choices"), list) for each in documents):
        whole = {"choices": [{"text": "w", "finish_reason": rng.choice(("stop", "length"))}]}
    return _json(whole)


def _sent(
    body: bytes, content_type: bytes, rng: random.Random, *, is_stream: bool, is_right: bool
) -> Sent:
    """Puts a body into HTTP, right or wrong."""
    status, is_taken, headers, closes, has_end = 200, True, [], rng.random() < 0.5, True
    if not is_right and rng.random() < 0.25:
        how = rng.randrange(3)
        is_taken = False
        if how == 0:
            status = rng.choice(_STATUSES)
        elif how == 1:
            content_type = rng.choice([each for each in _TYPES if each != content_type])
        else:
            headers.append(b"Content-Encoding: " + rng.choice((b"gzip", b"br", b"gzip, identity")))
            body = gzip.compress(body)
    first = b"HTTP/1.1 10%d Early\r\nLink: x\r\n\r\n" % rng.choice((0, 2, 3))
    hints = first * rng.choice((1, 1, 3)) if rng.random() < 0.08 else b""
    framing = rng.choice(("chunked", "chunked", "length", "close", "fault", "short", "long"))
    if is_right and framing not in ("chunked", "length"):
        framing = "chunked"
    segments: Segments = [(body, True)]
    if framing in ("chunked", "fault"):
        headers.append(b"Transfer-Encoding: chunked")
        segments = _chunked(body, rng)
        if framing == "fault":
            segments, has_end = _with_fault(segments, rng), False
    elif framing != "close":
        less = rng.randint(0, len(body)) if framing == "short" else 0
        size = len(body) - less + (rng.randint(1, 9) if framing == "long" else 0)
        headers.append(b"Content-Length: %d" % size)
        segments = [(body[:size], True), (body[size:], False)]
        has_end = framing != "long"
        closes = closes or bool(less)  # the rest must not answer the next request
    else:
        closes, has_end = True, False
    if status < 200 or status in (204, 304):
        closes, has_end = True, False
    head, is_known = _head(status, content_type, *headers), True
    if not is_right and rng.random() < 0.08:
        head, is_known = changed_bytes(head, rng), False
        closes = True
    segments = [(hints + head, False), *segments]
    if not is_right and rng.random() < 0.25:
        segments, was_cut = _cut(segments, rng)
        has_end = has_end and not was_cut
    delivered = b"".join(each for each, is_body in segments if is_body)
    text = None
    if is_taken:
        found = events_of(delivered) if is_stream else [delivered]
        text = meaning_of(found, has_ended=has_end)
    wire = b"".join(each for each, _ in segments)
    return Sent(_pieces(wire, rng), is_stream, closes, text, is_right, is_known)


def _cut(segments: Segments, rng: random.Random) -> tuple[Segments, bool]:
    """Cuts what is sent at any byte; also returns whether something is missing."""
    total = sum(len(each) for each, _ in segments)
    left = rng.randrange(total + 1)
    is_cut, kept = left < total, []
    for each, is_body in segments:
        kept.append((each[:left], is_body))
        left = max(0, left - len(each))
    return kept, is_cut


def _pieces(wire: bytes, rng: random.Random) -> tuple[bytes, ...]:
    """Splits what is sent at any byte."""
    if len(wire) < 600 and rng.random() < 0.2:
        return tuple(wire[i : i + 1] for i in range(len(wire)))
    places = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice((0, 1, 3, 12))))
    found = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True)]
    return tuple(piece for piece in found if piece)


# ---- how they are sent ----


class Player:
    """A server that plays the answer it was given last, as bytes."""

    def __init__(self) -> None:
        self.sent = Sent((), is_stream=True, closes=True, text=None, is_right=False)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers the requests of one connection."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            closes = False
            while not closes:
                head = await reader.readuntil(b"\r\n\r\n")
                size = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(size or 0))
                closes, pieces = self.sent.closes, self.sent.pieces
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        writer.close()


class Table:
    """Such a server, and who asks it."""

    def __init__(self, player: Player, address: str) -> None:
        self._player = player
        self.keeping = OpenAIClient(address, most_idle_connections=_IDLE)
        self.leaving = OpenAIClient(address)

    async def ask(self, sent: Sent) -> str:
        """Asks for an answer; returns its text.

        Raises:
            TierError: There was none.
        """
        self._player.sent = sent
        ends = sent.closes or sent.is_right
        # What comes after an answer on its connection is not to meet the next request there.
        client = self.leaving if sent.closes and not sent.is_right else self.keeping
        texts = [
            chunk.text
            async for chunk in client.generate(
                "m", "hi", LIMIT_TOKENS, timeout_s=_ANSWER_S if ends else _HELD_S,
                stream=sent.is_stream,
            )
        ]  # fmt: skip
        return "".join(texts)


@contextlib.asynccontextmanager
async def laid() -> AsyncIterator[Table]:
    """Runs such a server, and clients of it; no connection may be left at last."""
    player = Player()
    server = await asyncio.start_server(player.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    table = Table(player, f"{host}:{port}")
    try:
        yield table
        clients = (table.keeping, table.leaving)
        await until(lambda: not any(each.busy_count for each in clients), "no request is left")
        assert table.keeping.connection_count <= _IDLE
        assert table.leaving.connection_count == 0
    finally:
        await table.keeping.close()
        await table.leaving.close()
        server.close()


def shown(text: str) -> str:
    """Returns a text as it is sent on: JSON may hold halves of a character."""
    return text.encode("utf-8", "replace").decode()


def wrong(sent: Sent, got: str | TierError) -> str:
    """Returns what is wrong with what an answer was taken for; empty if nothing is."""
    if isinstance(got, TierError):
        if sent.is_right:
            return f"a right answer was refused: {got}"
        return "no end was seen" if sent.closes and got.reason == "DEADLINE_EXCEEDED" else ""
    if not sent.is_known:
        return ""
    if sent.text is None:
        return f"no whole answer was taken for one: {got!r:.200}"
    return "" if got == shown(sent.text) else f"{got!r:.200} for {sent.text!r:.200}"


@dataclass
class Report:
    """What came of the answers.

    Attributes:
        ends: How often each end: "answered", or a reason.
        problems: What must not be, with the input.
    """

    ends: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


async def _tried(table: Table, sent: Sent, report: Report) -> str:
    """Asks for one answer; returns what is wrong with what came of it."""
    try:
        async with asyncio.timeout(2 * _ANSWER_S):
            got: str | TierError = await table.ask(sent)
            report.ends["answered"] += 1
    except TierError as error:
        got = error
        report.ends[error.reason] += 1
    except Exception as error:
        return repr(error)
    return wrong(sent, got)


async def fuzz(
    *, count: int, seed: int, end_s: float, say: Callable[[str], None] = lambda _: None
) -> Report:
    """Sends wrong answers until their number or the time is reached."""
    report, bugs, rng = Report(), Bugs(), random.Random(seed)
    logging.getLogger().addHandler(bugs)
    try:
        async with laid() as table:
            for number in range(count):
                if time.monotonic() > end_s or len(report.problems) >= _MOST_PROBLEMS:
                    break
                sent = answer_of(rng)
                problem = await _tried(table, sent, report) or "; ".join(bugs.seen)
                if problem:
                    report.problems.append(f"input {number}: {problem}: {sent!r:.3000}")
                    say(report.problems[-1])
                    bugs.seen.clear()
                if number % _PROBE_EVERY == 0:
                    say(f"{number:,} of {count:,}: {dict(report.ends)}")
    finally:
        logging.getLogger().removeHandler(bugs)
    return report


def main() -> int:
    """Runs the long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="answers")
    parser.add_argument("--seconds", type=float, default=3_600.0, help="start nothing after this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = parser.parse_args()
    started_s = time.monotonic()
    print(f"streams: seed {given.seed}", flush=True)
    report = asyncio.run(
        fuzz(
            count=given.count,
            seed=given.seed,
            end_s=started_s + given.seconds,
            say=lambda text: print(f"{time.monotonic() - started_s:6.0f} s  {text}", flush=True),
        )
    )
    print(
        f"{report.ends.total():,} answers in {time.monotonic() - started_s:.0f} s, seed"
        f" {given.seed}: {len(report.problems)} problems; {dict(report.ends)}"
    )
    return 1 if report.problems or not report.ends else 0


if __name__ == "__main__":
    sys.exit(main())
