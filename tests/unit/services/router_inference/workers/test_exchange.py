"""Questions to siblings find their answers."""

from __future__ import annotations

import asyncio

import pytest

from services.router_inference.workers import exchange as exchange_module
from services.router_inference.workers import frames
from services.router_inference.workers.exchange import ALL, Exchange, ask_bytes, read_ask
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings


async def frames_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Returns the frames in some bytes."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    found = []
    while (told := await frames.read_frame(reader)) is not None:
        found.append(told)
    return found


def pair(answer: bytes | None) -> Exchange:
    """Returns a worker whose only sibling answers so; what lies between them passes all on."""
    asker, sibling = Exchange(), Exchange()
    seen: list[tuple[str, str, bytes]] = []

    async def answerer(method: str, client: str, message: bytes) -> bytes | None:
        seen.append((method, client, message))
        assert seen == [("Explain", "me", b"a\0b")]
        return answer

    async def to_sibling(data: bytes) -> None:
        ((kind, payload),) = await frames_of(data)
        number, to, body = read_ask(payload)
        assert (kind, to) == (frames.ASK, ALL)
        sibling.on_ask(ask_bytes(number, body))

    async def to_asker(data: bytes) -> None:
        ((kind, payload),) = await frames_of(data)
        assert kind == frames.ANSWER
        asker.on_answer(payload)

    tasks = set()
    sibling.answer_with(answerer, ["Explain"])
    asker.connect(lambda data: tasks.add(asyncio.ensure_future(to_sibling(data))))
    sibling.connect(lambda data: tasks.add(asyncio.ensure_future(to_asker(data))))
    return asker


@pytest.mark.parametrize("answer", [b"", b"\0\1x", None])
async def test_a_question_gets_its_answer(answer: bytes | None) -> None:
    """An empty answer is one; none is none."""
    assert await pair(answer).ask(ALL, "Explain", "me", b"a\0b") == answer


async def test_what_nobody_answers_is_none() -> None:
    """A question of another version is no failure."""
    asker = pair(b"x")
    assert await asker.ask(ALL, "Unknown", "me", b"a\0b") is None


async def test_siblings_that_say_nothing_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call goes on without them; an answer that comes too late is dropped."""
    monkeypatch.setattr(exchange_module, "ANSWER_S", 0.01)
    sent: list[bytes] = []
    asker = Exchange()
    asker.connect(sent.append)
    assert await asker.ask(ALL, "Explain", "", b"") is None
    assert len(sent) == 1
    asker.on_answer(exchange_module.answer_bytes(1, b"late"))


@pytest.mark.parametrize(
    ("worker_id", "epoch", "number"),
    [("r/2", 7, 2), ("r/1", 7, 0), ("r/2", 8, 0), ("s/2", 7, 0), ("r", 7, 0), ("", 0, 0)],
)
def test_a_sibling_is_told_from_others(worker_id: str, epoch: int, number: int) -> None:
    """By name and epoch of the router; the own number is no sibling."""
    place = Place(router_id="r", epoch=7, siblings=NoSiblings(), number=1)
    assert place.worker_id == "r/1"
    assert place.number_of(worker_id, epoch) == number
