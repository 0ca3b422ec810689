"""Bytes to the client of servers that speak OpenAI, without a network: for readers (`readers.py`).

An answer comes in pieces of several sizes, and must mean the same in all of them; where it is taken
for complete, its text is what a plain reading of the whole finds.
"""

from __future__ import annotations

import asyncio
import functools
import random

import h11

from services.common.openai.connection import Connection
from services.common.openai.exchanges import AskingOpenAI
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import TierError
from tests.fuzzing import streams
from tests.fuzzing.octets import changed_bytes, changed_lines

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
_LARGE_BYTES = 200_000
"""Above that, whether an event is too long depends on how much comes at once."""
_PIECES = 400


class _Transport(asyncio.Transport):
    """Takes what is sent, and is closed when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Sends to nobody."""

    def abort(self) -> None:
        """Is closed."""
        self.is_closed = True


class _Owner:
    """Keeps no connection."""

    def give_back(self, connection: Connection) -> None:
        """Does nothing."""

    def forget(self, connection: Connection) -> None:
        """Does nothing."""

    def send_anew(self, exchange: object, request: bytes) -> None:
        """Is for connections that were kept."""
        raise AssertionError("a first request is not sent again")


@functools.cache
def _runner() -> asyncio.Runner:
    return asyncio.Runner()


def taken(wire: bytes, size: int) -> str | TierError:
    """Returns the text of an answer, or what it failed with.

    Args:
        wire: What comes until the connection is closed.
        size: Size of the pieces it comes in, bytes.
    """
    return _runner().run(_taken(wire, size))


async def _taken(wire: bytes, size: int) -> str | TierError:
    pieces: list[TierChunk] = []
    ends: list[Exception | None] = []
    asking = AskingOpenAI(streams.LIMIT_TOKENS, pieces.append, ends.append, is_stream=True)
    connection, transport = Connection(_Owner()), _Transport()
    connection.connection_made(transport)
    connection.carry(asking, b"")
    for start in range(0, len(wire), size):
        if transport.is_closed:
            break
        connection.data_received(wire[start : start + size])
    connection.connection_lost(None)
    [end] = ends
    if end is None:
        assert pieces[-1].is_final
        return "".join(each.text for each in pieces)
    if not isinstance(end, TierError):
        raise end
    return end


def _in_pieces(wire: bytes) -> list[str | TierError]:
    least = max(1, len(wire) // _PIECES)
    return [taken(wire, size) for size in (least, len(wire) // 3 + 1, len(wire) + 1)]


def read_stream(body: bytes) -> str:
    """Reads events that came in good order; raises TierError where they are no answer."""
    found = _in_pieces(_HEAD % len(body) + body)
    if len(body) < _LARGE_BYTES:
        kinds = {each if isinstance(each, str) else each.reason for each in found}
        assert len(kinds) == 1, f"depends on the pieces: {kinds}"
    whole = streams.meaning_of(streams.events_of(body), has_ended=True)
    return _checked(found, whole)


def read_answer(wire: bytes) -> str:
    """Reads an answer with its headers; raises TierError where it is none."""
    found = _in_pieces(wire)
    is_known, whole = _by_another(wire)
    if is_known:
        return _checked(found, whole)
    return _checked(found, next((each for each in found if isinstance(each, str)), None))


def _checked(found: list[str | TierError], whole: str | None) -> str:
    """Returns the text, after checking that whoever found one found this one."""
    for each in found:
        if isinstance(each, str):
            assert whole is not None, f"no whole answer was taken for one: {each!r:.200}"
            assert each == streams.shown(whole), f"{each!r:.200} for {whole!r:.200}"
    last = found[-1]
    if isinstance(last, TierError):
        raise last
    return last


def _by_another(wire: bytes) -> tuple[bool, str | None]:
    """Returns whether another parser of HTTP reads it, and what the answer is by that."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="POST", target="/", headers=[("host", "a")]))
    parser.send(h11.EndOfMessage())
    body, has_ended, is_right = b"", False, False
    try:
        parser.receive_data(wire)
        while not has_ended:
            event = parser.next_event()
            if isinstance(event, h11.Response):
                is_right = event.status_code == 200
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                has_ended = True
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        return False, None
    if not is_right:
        return True, None
    return True, streams.meaning_of(streams.events_of(body), has_ended=has_ended)


def stream_seeds() -> list[bytes]:
    """Returns the bodies of some right answers."""
    rng = random.Random(1)
    return [streams.right_stream(rng) for _ in range(8)]


def answer_seeds() -> list[bytes]:
    """Returns some right answers with their headers."""
    rng = random.Random(2)
    found: list[bytes] = []
    while len(found) < 8:
        sent = streams.answer_of(rng)
        if sent.is_right and sent.is_stream:
            found.append(b"".join(sent.pieces))
    return found


def changed_stream(data: bytes, rng: random.Random) -> bytes:
    """Makes wrong events: by their grammar, by lines, or as bytes."""
    how = rng.random()
    if how < 0.5:
        return streams.wrong_stream(rng)
    return changed_lines(data, rng) if how < 0.75 else changed_bytes(data, rng)


def changed_answer(data: bytes, rng: random.Random) -> bytes:
    """Makes a wrong answer: by its grammar, or as bytes."""
    if rng.random() < 0.5:
        return b"".join(streams.answer_of(rng).pieces)
    return changed_bytes(data, rng)
