"""The client of servers that speak OpenAI, against one in process."""

from __future__ import annotations

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import uvloop

from services.common.openai.client import OpenAIClient
from services.common.openai.events import EventReader
from services.common.tiers.answer import TierChunk
from services.common.tiers.errors import (
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
    TierUnknownError,
)
from tests.fakes.openai_server import FakeOpenAI, Script, openai_server, raw_server
from tests.waiting import LIMIT_S, until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
GOOD = b'data: {"choices":[{"index":0,"text":"x","finish_reason":"stop"}]}\n\n'


def chunked(*pieces: bytes, ends: bool = True) -> bytes:
    """Returns a stream of some pieces."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return HEAD + body + (b"0\r\n\r\n" if ends else b"")


async def collect(client: OpenAIClient, limit: int = 8, **options: Any) -> list[TierChunk]:
    """Asks for an answer; returns its pieces."""
    options = {"timeout_s": LIMIT_S, **options}
    return [each async for each in client.generate("m", "hé\n", limit, **options)]


async def failure_of(answer: bytes, **options: Any) -> TierError:
    """Returns the error that an answer of these bytes ends with."""
    async with raw_server(answer) as address, OpenAIClient(address) as client:
        with pytest.raises(TierError) as caught:
            await collect(client, **options)
    return caught.value


async def test_an_answer_comes_piece_by_piece_with_the_servers_count() -> None:
    """Tokens that came two in an event are counted as the server counts them at the end."""
    script = Script(tokens=("a", "é", "c"), per_event=2)
    async with openai_server(default=script) as server, OpenAIClient(server.address) as client:
        pieces = await collect(client)
    assert pieces == [
        TierChunk("aé", 1, False, ""), TierChunk("c", 1, False, ""), TierChunk("", 1, True, "stop"),
    ]  # fmt: skip
    assert server.received[0].end == "done"


async def test_pieces_are_counted_where_the_server_does_not() -> None:
    """One token each."""
    async with (
        openai_server(default=Script(has_usage=False)) as server,
        OpenAIClient(server.address) as client,
    ):
        pieces = await collect(client, 3)
    assert [each.token_count for each in pieces] == [1, 1, 1, 0]
    assert pieces[-1].finish_reason == "length"


async def test_what_a_request_carries_is_passed_on() -> None:
    """Limit, temperature and seed; the trace's metadata as headers; the key."""
    async with (
        openai_server(api_key="secret") as server,
        OpenAIClient(server.address, api_key=lambda: "secret") as client,
    ):
        metadata = (("traceparent", "00-1-2-01"),)
        await collect(client, 5, temperature=0.5, seed=7, metadata=metadata)
        await collect(client, 5, stream=False)
    first, second = server.received
    assert first.body == {
        "model": "m", "prompt": "hé\n", "max_tokens": 5, "temperature": 0.5, "seed": 7,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert first.headers["traceparent"] == "00-1-2-01"
    assert first.headers["authorization"] == "Bearer secret"
    assert first.headers["accept-encoding"] == "identity"
    assert second.body == {"model": "m", "prompt": "hé\n", "max_tokens": 5, "temperature": 0.0}


async def test_certificates_that_cannot_be_read_are_a_failure_like_any_other() -> None:
    """Their files may be changed at this moment; the request would have waited to its end."""
    gone = Path("/nonexistent/tls.crt")
    tls: Any = type("Tls", (), {"client_context": lambda self: gone.read_bytes()})()
    async with OpenAIClient("127.0.0.1:1", tls=tls) as client:
        with pytest.raises(TierUnavailableError, match="No such file"):
            await collect(client)
        assert client.connection_count == 0


async def test_an_answer_in_one_piece() -> None:
    """Where the router does not want to see tokens."""
    async with openai_server() as server, OpenAIClient(server.address) as client:
        pieces = await collect(client, stream=False)
    assert pieces == [TierChunk("abc", 3, False, ""), TierChunk("", 0, True, "stop")]


async def test_a_connection_is_kept_for_the_next_request() -> None:
    """One after the other uses one connection; two at once use two, and neither is lost."""
    async with (
        openai_server() as server,
        OpenAIClient(server.address, most_idle_connections=2) as client,
    ):
        for _ in range(3):
            await collect(client)
            await until(lambda: client.busy_count == 0, "the connections are idle")
        assert len({each.client for each in server.received}) == 1
        await asyncio.gather(collect(client), collect(client))
        await until(lambda: client.busy_count == 0, "the connections are idle")
        assert client.connection_count == 2
        async with OpenAIClient(server.address) as client:
            await collect(client)
            await until(lambda: client.connection_count == 0, "the connection is closed")


async def test_a_connection_that_was_closed_meanwhile_costs_no_request() -> None:
    """The server may close one at any time that nobody uses; it is asked again on another."""
    answer = chunked(GOOD, b"data: [DONE]\n\n")
    # says keep-alive, and closes
    async with (
        raw_server(answer) as address,
        OpenAIClient(address, most_idle_connections=1) as client,
    ):
        for _ in range(4):
            assert (await collect(client))[0].text == "x"


async def test_closing_the_stream_stops_the_server() -> None:
    """Whoever leaves early leaves no work behind."""
    script = Script(tokens=("a",) * 1000, step_s=0.01)
    async with openai_server(default=script) as server, OpenAIClient(server.address) as client:
        pieces = client.generate("m", "p", 1000, timeout_s=30.0)
        assert (await anext(pieces)).text == "a"
        await pieces.aclose()
        await until(lambda: server.received[0].end == "cancelled", "the server stopped")
        await until(lambda: client.connection_count == 0, "the connection is closed")


async def test_a_deadline_closes_the_stream() -> None:
    """The server knows none: at the end of the time left the connection is closed."""
    async with (
        openai_server(default=Script(hang=True)) as server,
        OpenAIClient(server.address) as client,
    ):
        with pytest.raises(TierDeadlineError):
            await collect(client, timeout_s=0.5)
        await until(lambda: server.received[0].end == "cancelled", "the server stopped")
        with pytest.raises(TierDeadlineError):
            await collect(client, timeout_s=0.0)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [
        (400, TierInvalidError, "INVALID_REQUEST"),
        (422, TierInvalidError, "INVALID_REQUEST"),
        (413, TierInvalidError, "INVALID_REQUEST"),
        (403, TierUnavailableError, "KEY_REFUSED"),
        (404, TierUnavailableError, "MODEL_NOT_FOUND"),
        (405, TierUnavailableError, "UNAVAILABLE"),
        (302, TierUnavailableError, "UNAVAILABLE"),
        (429, TierOverloadedError, "RESOURCE_EXHAUSTED"),
        (503, TierOverloadedError, "RESOURCE_EXHAUSTED"),
        (502, TierUnavailableError, "UNAVAILABLE"),
        (504, TierUnavailableError, "UNAVAILABLE"),
        (500, TierUnknownError, "TIER_FAILED"),
        (501, TierUnknownError, "TIER_FAILED"),
    ],
)
async def test_statuses(status: int, kind: type[TierError], reason: str) -> None:
    """Whose fault a status is; the connection stays usable."""
    async with (
        openai_server(default=Script(status=status)) as server,
        OpenAIClient(server.address, most_idle_connections=1) as client,
    ):
        with pytest.raises(TierError) as caught:
            await collect(client)
        assert client.connection_count == 1
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert str(status) in caught.value.detail


async def test_a_key_that_is_refused_is_never_repeated() -> None:
    """Some servers repeat it in their text, which ends in logs and in clients' errors."""
    async with (
        openai_server(api_key="right") as server,
        OpenAIClient(server.address, api_key=lambda: "wrong-and-secret") as client,
    ):
        with pytest.raises(TierUnavailableError, match="another key") as caught:
            await collect(client)
    assert "secret" not in str(caught.value)


async def test_an_error_inside_a_stream_is_no_answer() -> None:
    """Though the status was 200, and the stream ends in order."""
    async with (
        openai_server(default=Script(fails_after=1)) as server,
        OpenAIClient(server.address) as client,
    ):
        with pytest.raises(TierUnknownError, match="engine died"):
            await collect(client)


JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
PACKED_HEAD = JSON_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
BOMB = zlib.compress(bytes(16 * 2**20), wbits=31)
BAD = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\na: " + b"x" * 300_000,
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 60_000,
    "a switch of protocols": b"HTTP/1.1 101 S\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "endless hints": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 2_000,
    "another alphabet": HEAD[:-2] + b"content-encoding: \xff\r\n\r\n0\r\n\r\n",
    "reasons that are none": chunked(GOOD.replace(b'"stop"', b'""')),
    "another type": JSON_HEAD % 2 + b"{}",
    "a compressed body": HEAD[:-2] + b"content-encoding: gzip\r\n\r\n0\r\n\r\n",
    "a bomb": PACKED_HEAD % len(BOMB) + BOMB,
    "a bomb behind another encoding": PACKED_HEAD.replace(
        b"\r\n\r\n", b"\r\ncontent-encoding: identity\r\n\r\n"
    ) % len(BOMB) + BOMB,
    "no JSON": chunked(b"data: {\n\n"),
    "no UTF-8": chunked(b'data: {"choices":[{"text":"\xff"}]}\n\n'),
    "deep JSON": chunked(b"data: " + b"[" * 100_000 + b"\n\n"),
    "a long number": chunked(b'data: {"a":' + b"1" * 5_000 + b"}\n\n"),
    "no object": chunked(b"data: 7\n\n"),
    "choices of another form": chunked(b'data: {"choices":{"a":1}}\n\n'),
    "a choice of another form": chunked(b'data: {"choices":[1]}\n\n'),
    "a text of another form": chunked(b'data: {"choices":[{"text":{}}]}\n\n'),
    "a finish_reason of another form": chunked(b'data: {"choices":[{"finish_reason":{}}]}\n\n'),
    "a count of another form": chunked(b'data: {"usage":{"completion_tokens":"1"}}\n\n'),
    "a negative count": chunked(b'data: {"choices":[],"usage":{"completion_tokens":-1}}\n\n'),
    "too many tokens": chunked(b'data: {"choices":[],"usage":{"completion_tokens":9}}\n\n'),
    "too long a text": chunked(b'data: {"choices":[{"text":"' + b"x" * 20_000 + b'"}]}\n\n'),
    "too many pieces": chunked(*[GOOD] * 60),
    "an endless event": chunked(*[b"x" * 60_000] * 5),
    "an event without a line's end": chunked(b"data: " + b"x" * 270_000),
    "an end without a reason": chunked(b"data: [DONE]\n\n"),
    "an end without anything": chunked(),
}  # fmt: skip


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
async def test_bad_answers_are_the_endpoints_fault(answer: bytes) -> None:
    """Whatever a server sends that it may not: nobody takes it for an answer, nothing hangs."""
    error = await failure_of(answer)
    assert (type(error), error.reason) == (TierUnavailableError, "BAD_ANSWER"), error


CUT = {
    "nothing": b"",
    "within the headers": HEAD[:30],
    "after an early hint": b"HTTP/1.1 103 Early Hints\r\n\r\n",
    "within the end of the last event": chunked(GOOD[:-1], ends=False),
    "after the headers": HEAD,
    "within an event": chunked(GOOD[:20], ends=False),
    "before the reason": chunked(b'data: {"choices":[{"text":"x"}]}\n\n', ends=False),
    "after the reason": chunked(GOOD, ends=False),
}


@pytest.mark.parametrize("answer", CUT.values(), ids=CUT)
async def test_an_answer_that_breaks_off_is_never_a_success(answer: bytes) -> None:
    """Wherever the connection ends before the server said that the answer is complete."""
    error = await failure_of(answer)
    assert (type(error), error.reason) == (TierUnavailableError, "UNAVAILABLE")


async def test_a_server_that_broke_its_work_off_says_so_by_the_reason() -> None:
    """As vLLM does where its engine gave a request up."""
    aborted = GOOD.replace(b'"stop"', b'"abort"')
    error = await failure_of(chunked(aborted, b"data: [DONE]\n\n"))
    assert error.reason == "CANCELLED_BY_SERVER"


async def test_a_stream_without_done_is_complete_where_its_message_is() -> None:
    """The reason was given and the last chunk came; comments and CRLF are taken."""
    crlf = GOOD.replace(b"\n", b"\r\n")
    async with (
        raw_server(chunked(b": ping\n\n", b"id: 3\n", crlf)) as address,
        OpenAIClient(address) as client,
    ):
        assert "".join(each.text for each in await collect(client)) == "x"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 1_000])
def test_lines_end_as_the_standard_allows(end: bytes, size: int) -> None:
    """Also where CR and LF come apart, and after a mark of UTF-8."""
    lines = [
        b"\xef\xbb\xbfdata: a",
        b"data",
        b"data:b",
        b"",
        b": no",
        b"",
        b"event: x",
        b"data:  c",
    ]
    whole = end.join([*lines, b"", b"data: [DONE]"]) + end
    reader, found = EventReader(), []
    for start in range(0, len(whole), size):
        found += reader.feed(whole[start : start + size])
    assert found == [b"a\n\nb", b" c"]  # the last one has not ended
    assert reader.feed(end) == [b"[DONE]"]


def test_a_long_line_comes_byte_by_byte() -> None:
    """It says nothing, and is within the limit."""
    reader = EventReader()
    for _ in range(200_000):
        assert not reader.feed(b"x")
    assert reader.feed(b"\ndata: y\n\n") == [b"y"]


async def test_an_early_hint_comes_before_the_answer() -> None:
    """As proxies send them; headers of a hint are none of the answer's."""
    hint = b"HTTP/1.1 103 Early Hints\r\ncontent-type: text/html\r\nlink: x\r\n\r\n"
    answer = hint + b"HTTP/1.1 100 Continue\r\n\r\n" + chunked(GOOD)
    async with (
        raw_server(answer, is_kept=True) as address,
        OpenAIClient(address, most_idle_connections=1) as client,
    ):
        for _ in range(2):
            assert (await collect(client))[0].text == "x"
        assert client.connection_count == 1


async def test_events_may_be_cut_anywhere() -> None:
    """Pieces of the transport are not those of the answer."""
    whole = GOOD + b"data: [DONE]\n\n"
    answer = chunked(*(whole[i : i + 1] for i in range(len(whole))))
    async with raw_server(answer) as address, OpenAIClient(address) as client:
        assert (await collect(client))[0].text == "x"


async def test_half_a_character_can_be_sent_on() -> None:
    """JSON may hold what no UTF-8 can: it must not fail where the answer is sent to the client."""
    answer = chunked(GOOD.replace(b'"x"', rb'"\ud83d"'))
    async with raw_server(answer) as address, OpenAIClient(address) as client:
        assert (await collect(client))[0].text == "?"


async def test_a_server_that_talks_unasked_is_left() -> None:
    """What comes on an idle connection answers nothing, least of all the next request."""
    answer = chunked(GOOD, b"data: [DONE]\n\n")
    async with (
        raw_server(answer + answer, answer, is_kept=True) as address,
        OpenAIClient(address, most_idle_connections=1) as client,
    ):
        await collect(client)
        await until(lambda: client.connection_count == 0, "the connection is closed")
        assert (await collect(client))[0].text == "x"


async def test_an_endless_stream_of_comments_ends() -> None:
    """Bytes that say nothing are bounded too."""
    error = await failure_of(chunked(*[b": ping\n\n" * 8_000] * 5))
    assert error.reason == "BAD_ANSWER"


async def test_a_server_that_is_not_there_fails_at_once() -> None:
    """So that the request can go elsewhere while there is time."""
    server = await FakeOpenAI().start()
    await server.stop()
    async with OpenAIClient(server.address) as client:
        with pytest.raises(TierUnavailableError, match="cannot connect"):
            await collect(client)
        assert not await client.is_live()
        assert not await client.is_ready()


async def test_a_server_that_dies_in_the_middle_fails_its_requests() -> None:
    """None of them is taken for complete."""
    script = Script(tokens=("a",) * 100, step_s=0.01)
    async with openai_server(default=script) as server, OpenAIClient(server.address) as client:
        asking = asyncio.create_task(collect(client, 100))
        await until(lambda: bool(server.received), "it is asked")
        await server.stop()
        with pytest.raises(TierUnavailableError):
            await asking


async def test_health_and_models() -> None:
    """What the monitor asks; one connection serves all of it."""
    async with (
        openai_server(models=("b", "a")) as server,
        OpenAIClient(server.address, most_idle_connections=1) as client,
    ):
        assert await client.is_live()
        assert await client.loaded_models() == ("a", "b")
        assert [await client.is_ready(each) for each in ("a", "c", "")] == [True, False, True]
        assert (await client.model_config("a")).kind == ""
        with pytest.raises(TierUnavailableError, match="no model c"):
            await client.model_config("c")
        assert client.connection_count == 1
        server.is_ill = True
        assert not await client.is_live()
        with pytest.raises(TierOverloadedError):
            await client.statistics()


@pytest.mark.parametrize("body", [b"[]", b'{"data":[{}]}', b'{"data":[{"id":3}]}', b"{", b""])
async def test_a_list_of_models_that_is_none(body: bytes) -> None:
    """Says that no model is ready."""
    answer = JSON_HEAD % len(body) + body
    async with raw_server(answer) as address, OpenAIClient(address) as client:
        with pytest.raises(TierUnavailableError, match="BAD_ANSWER"):
            await client.loaded_models()
        assert not await client.is_ready("m")


async def test_a_page_that_does_not_come() -> None:
    """A server that hangs is known by the time a call may take."""
    async with (
        raw_server(b"HTTP/1.1 200 OK\r\n", is_kept=True) as address,
        OpenAIClient(address, control_timeout_s=0.1) as client,
    ):
        with pytest.raises(TierDeadlineError):
            await client.statistics()
        await until(lambda: client.connection_count == 0, "the connection is closed")


async def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment names: prompts go straight to their endpoint."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with openai_server() as server, OpenAIClient(server.address) as client:
        assert json.dumps((await collect(client))[0].text) == '"a"'


def test_by_the_event_loop_that_services_run() -> None:
    """Answers, deadlines, leaving, a server that dies: uvloop's transports are of its own kind."""
    slow = Script(tokens=("a",) * 100, step_s=0.05)

    async def run() -> None:
        async with (
            openai_server(models=("m", "slow"), scripts={"slow": slow}) as server,
            OpenAIClient(server.address, most_idle_connections=1) as client,
        ):
            assert len(await collect(client)) == 4
            assert await client.is_ready("m")
            with pytest.raises(TierDeadlineError):
                _ = [e async for e in client.generate("slow", "p", 100, timeout_s=0.5)]
            pieces = client.generate("slow", "p", 100, timeout_s=LIMIT_S)
            await anext(pieces)
            await pieces.aclose()
            dying = client.generate("slow", "p", 100, timeout_s=LIMIT_S)
            await anext(dying)
            await server.stop()
            with pytest.raises(TierUnavailableError):
                _ = [each async for each in dying]
            with pytest.raises(TierUnavailableError, match="cannot connect"):
                await collect(client)
            assert [each.end for each in server.received] == ["done", *["cancelled"] * 3]
            await until(lambda: client.connection_count == 0, "every connection is closed")

    uvloop.run(run())


async def test_the_tokens_of_a_prompt_are_the_servers_count() -> None:
    """For calibration; a count that no prompt of this length has is refused."""
    async with openai_server() as server, OpenAIClient(server.address) as client:
        assert await client.prompt_token_count("m", "p", timeout_s=LIMIT_S) == 1
        with pytest.raises(TierUnavailableError, match="MODEL_NOT_FOUND"):
            await client.prompt_token_count("nope", "p", timeout_s=LIMIT_S)
    for count in (b"null", b"0", b"-1", b"1.5", b"true", b"9999"):
        body = b'{"usage":{"prompt_tokens":%s}}' % count
        answer = JSON_HEAD % len(body) + body
        async with raw_server(answer) as address, OpenAIClient(address) as client:
            with pytest.raises(TierUnavailableError, match="BAD_ANSWER"):
                await client.prompt_token_count("m", "p", timeout_s=LIMIT_S)
