"""Connections that are opened for requests which nobody waits for any more."""

from __future__ import annotations

from services.common.openai.exchanges import AskingOpenAI
from services.common.openai.pool import ConnectionPool
from tests.waiting import until


def _asking() -> AskingOpenAI:
    return AskingOpenAI(4, lambda _: None, lambda _: None, is_stream=True)


async def test_a_request_given_up_before_it_is_sent_leaves_nothing() -> None:
    """Its time may be over, or its client gone, before the connection begins to open."""
    pool = ConnectionPool("127.0.0.1:9", 4, None)
    asking = _asking()
    pool.send(asking, b"GET / HTTP/1.1\r\n\r\n")
    asking.cancel()
    await until(lambda: not len(pool), "nothing is being opened", 5.0)
    assert pool.busy_count == 0
    await pool.close()
