"""The router's messages as OpenAI's JSON."""

from __future__ import annotations

import json
from typing import Any

from services.openai_door.chat_template import TEMPLATES
from services.openai_door.convert import Envelope, headers_of
from services.openai_door.models import ModelNames
from services.openai_door.request import RequestReader
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

ELAPSED_S = 0.15
READER = RequestReader(models=ModelNames(tasks=[], tiers=["small"]), template=TEMPLATES["bare"])


def envelope(*, is_chat: bool = True, **more: Any) -> Envelope:
    """An answer that begins."""
    if is_chat:
        body = {"model": "tiercel", "messages": [{"role": "user", "content": "é" * 6}], **more}
        ask = READER.chat(json.dumps(body).encode(), {})
    else:
        ask = READER.completion(json.dumps({"model": "small", "prompt": "hi", **more}).encode(), {})
    return Envelope.of(ask, "r1", 1_700_000_000, bytes_per_token=4.0)


def completion(**more: Any) -> pb2.Completion:
    """What a router knows about an answer."""
    made = pb2.Completion(
        request_id="r1", tier="small", endpoint="e0", policy="price", policy_version="3",
        on_time=True, quality=0.75, output_token_count=2, finish_reason="length",
        step_down_reason=common_pb2.STEP_DOWN_REASON_RESCUE, rescued=True, **more,
    )  # fmt: skip
    made.timings.total.FromMilliseconds(120)
    made.timings.early.FromMilliseconds(-30)
    made.timings.decode.FromMilliseconds(80)
    return made


def events(data: bytes) -> list[Any]:
    """Returns the events of a stream, its end as text."""
    assert data.endswith(b"\n\n")
    lines = [line.removeprefix("data: ") for line in data.decode().strip().split("\n\n")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_chat_answer_has_the_form_of_openai_and_our_facts() -> None:
    """The usage counts the prompt by its bytes."""
    reply = pb2.GenerateResponse(text='a"b', completion=completion())
    found = json.loads(envelope().whole(reply, ELAPSED_S))
    (choice,) = found["choices"]
    assert (found["id"], found["object"]) == ("chatcmpl-r1", "chat.completion")
    assert (found["model"], found["created"]) == ("tiercel", 1_700_000_000)
    assert choice["message"] == {"role": "assistant", "content": 'a"b', "refusal": None}
    assert choice["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    facts = found["tiercel"]
    assert (facts["tier"], facts["on_time"], facts["policy"]) == ("small", True, "price")
    assert (facts["step_down_reason"], facts["rescued"]) == ("rescue", True)
    assert facts["early_ms"] == -30.0
    # What was not told is not there; the door's own part is measured here.
    assert facts["timings_ms"] == {"dispatch": 0.0, "total": 120.0, "decode": 80.0, "door": 30.0}


def test_the_facts_are_headers_too() -> None:
    """What has no value has no header."""
    headers = dict(headers_of(completion()))
    assert headers[b"x-tiercel-tier"] == b"small"
    assert headers[b"x-tiercel-on-time"] == b"true"
    assert headers[b"x-tiercel-step-down-reason"] == b"rescue"
    assert b"x-tiercel-step-down-reason" not in dict(headers_of(pb2.Completion(tier="small")))


def test_a_completion_has_a_text() -> None:
    """And stops for no stated reason as one that is complete."""
    reply = pb2.GenerateResponse(text="abc", completion=pb2.Completion())
    found = json.loads(envelope(is_chat=False).whole(reply, ELAPSED_S))
    assert (found["id"], found["object"]) == ("cmpl-r1", "text_completion")
    assert found["choices"][0]["text"] == "abc"
    assert found["choices"][0]["finish_reason"] == "stop"


def test_a_stream_of_chat_begins_with_the_role_and_ends_with_done() -> None:
    """Pieces in between hold their text alone, whatever characters it has."""
    pieces = envelope(stream=True).pieces()
    text = '"TEXT"\n\u2028 data: é'
    found = events(pieces.first() + pieces.text(text) + pieces.last(completion(), ELAPSED_S))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert found[1]["choices"][0] == {
        "index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None,
    }  # fmt: skip
    assert found[1]["object"] == "chat.completion.chunk"
    assert found[2]["choices"][0]["finish_reason"] == "length"
    assert found[2]["tiercel"]["tier"] == "small"
    assert found[3:] == ["[DONE]"]
    assert not any("usage" in each for each in found[:3])


def test_usage_comes_in_an_event_of_its_own_where_it_was_asked_for() -> None:
    """The others say that theirs is not there."""
    pieces = envelope(stream=True, stream_options={"include_usage": True}).pieces()
    first, last, usage, done = events(pieces.text("a") + pieces.last(completion(), ELAPSED_S))
    assert first["usage"] is None
    assert last["usage"] is None
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2
    assert done == "[DONE]"


def test_a_stream_of_a_completion_has_texts() -> None:
    """No role before them."""
    pieces = envelope(is_chat=False, stream=True).pieces()
    assert pieces.first() == b""
    first, last, _ = events(pieces.text("a") + pieces.last(completion(), ELAPSED_S))
    assert first["choices"][0]["text"] == "a"
    assert (last["choices"][0]["text"], last["object"]) == ("", "text_completion")


def test_what_a_later_router_says_is_told_by_its_number() -> None:
    """Routers may be renewed before the door: an answer that is there is given."""
    later = completion(conversation_stay=98)
    later.step_down_reason = 99  # type: ignore[assignment]
    found = json.loads(envelope().whole(pb2.GenerateResponse(completion=later), ELAPSED_S))
    assert found["tiercel"]["step_down_reason"] == "99"
    assert found["tiercel"]["conversation_stay"] == "98"
    assert (b"x-tiercel-step-down-reason", b"99") in headers_of(later)
