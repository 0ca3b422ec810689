"""Requests read and checked."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.common.errors import DomainError, InvalidArgumentError, NotFoundError
from services.openai_door.chat_template import TEMPLATES
from services.openai_door.convert import spec_of
from services.openai_door.errors import problem_of
from services.openai_door.models import ModelNames
from services.openai_door.request import Ask, RequestReader

READER = RequestReader(
    models=ModelNames(tasks=["chat", "sort"], tiers=["small", "large"]),
    template=TEMPLATES["chatml"],
)
CHAT: dict[str, Any] = {"model": "tiercel", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiercel", "prompt": "hi"}


def chat(headers: dict[str, str] | None = None, **more: Any) -> Ask:
    """Reads a conversation with more fields."""
    return READER.chat(json.dumps({**CHAT, **more}).encode(), headers or {})


def completion(**more: Any) -> Ask:
    """Reads a completion with more fields."""
    return READER.completion(json.dumps({**COMPLETION, **more}).encode(), {})


def test_everything_that_is_served_is_read() -> None:
    """And reaches the router's request."""
    ask = chat(
        {"x-tiercel-deadline-ms": "250"},
        model="tiercel/chat",
        messages=[
            {"role": "developer", "content": "short"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": []},
        ],
        max_completion_tokens=7,
        temperature=0.5,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        metadata={"tiercel_quality_floor": "0.25", "run": "1"},
        user="u",
        n=1,
        top_p=1.0,
        stop=None,
    )
    assert ask.is_chat
    assert ask.is_stream
    assert ask.with_usage
    spec = spec_of(ask, "r1")
    assert spec.prompt == (
        "<|im_start|>system\nshort<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
        "<|im_start|>assistant\nc<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (spec.task, spec.tier, spec.request_id) == ("chat", "", "r1")
    assert (spec.max_output_tokens, spec.sampling.temperature, spec.sampling.seed) == (7, 0.5, 3)
    assert spec.deadline.ToMilliseconds() == 250
    assert spec.quality_floor == 0.25


@pytest.mark.parametrize(
    ("headers", "more", "name"),
    [
        ({}, {"prompt_cache_key": "k"}, "k"),
        ({}, {"metadata": {"tiercel_conversation_id": "m"}, "prompt_cache_key": "k"}, "m"),
        ({"x-tiercel-conversation-id": "h"}, {"metadata": {"tiercel_conversation_id": "m"}}, "h"),
        ({}, {"prompt_cache_key": None}, ""),
    ],
)
def test_a_conversation_is_named(headers: dict[str, str], more: dict[str, Any], name: str) -> None:
    """By a header of our own, else by metadata, else by OpenAI's own field for it."""
    assert spec_of(chat(headers, **more), "r1").conversation_id == name


@pytest.mark.parametrize("key", [7, "x" * 129, "\ud800"])
def test_a_conversation_that_cannot_be_named_so_is_told(key: object) -> None:
    """No text, too long a text, half a letter."""
    for more in ({"prompt_cache_key": key}, {"metadata": {"tiercel_conversation_id": key}}):
        with pytest.raises(InvalidArgumentError, match=r"prompt_cache_key|conversation_id"):
            chat(**more)


def test_what_is_not_given_is_left_to_the_router() -> None:
    """Nothing is made up here."""
    spec = spec_of(completion(), "r1")
    assert spec.prompt == "hi"
    assert not spec.task
    assert not spec.HasField("max_output_tokens")
    assert not spec.HasField("sampling")
    assert not spec.HasField("deadline")


def test_a_model_may_be_a_tier() -> None:
    """The tier is pinned then."""
    assert (completion(model="small").tier, completion(model="small").task) == ("small", "")


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"stop": "x"}, "stop"),
        ({"top_p": 0.9}, "top_p"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"store": True}, "store"),
        ({"min_tokens": 2}, "min_tokens"),
        ({"best_of": 1}, "best_of"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["a"]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "a<|im_end|>"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"metadata": "a"}, "metadata"),
        ({"metadata": {"tiercel_task": "sort"}, "model": "tiercel/chat"}, "metadata.tiercel_task"),
        ({"user": 5}, "user"),
    ],
)
def test_what_is_wrong_or_not_served_is_named(more: dict[str, Any], field: str) -> None:
    """Never passed over in silence."""
    with pytest.raises(InvalidArgumentError) as caught:
        chat(**more)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"echo": True}, "echo"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 0}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ],
)
def test_completions_have_fields_of_their_own(more: dict[str, Any], field: str) -> None:
    """Their prompt is one text."""
    with pytest.raises(InvalidArgumentError) as caught:
        completion(**more)
    assert caught.value.field == field


def test_a_list_with_one_text_is_a_prompt() -> None:
    """Some clients send no other form."""
    assert completion(prompt=["hi"]).prompt == "hi"


def test_an_unknown_model_is_not_found() -> None:
    """As OpenAI answers it."""
    with pytest.raises(NotFoundError):
        chat(model="gpt-4o")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["tiercel", "small", "user", "text", "\ud800", 10**400, 2**63, -1]),
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "model", "messages", "prompt", "role", "content", "type", "text", "max_tokens", "seed",
        "max_completion_tokens", "temperature", "stream", "stream_options", "include_usage", "n",
        "metadata", "tiercel_task", "tiercel_deadline_ms", "tools", "stop", "logprobs", "user",
    ]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, st.text()), inner, max_size=4)
    ),
    max_leaves=12,
)
BODIES = st.one_of(
    VALUES,
    st.builds(lambda more: {**CHAT, **more}, st.dictionaries(NAMES, VALUES, max_size=4)),
    st.builds(lambda more: {**COMPLETION, **more}, st.dictionaries(NAMES, VALUES, max_size=4)),
)


def refusal_of(data: bytes, headers: dict[str, str], *, is_chat: bool) -> DomainError | None:
    """Returns the error of a body; None if it can be sent to a router."""
    try:
        ask = (READER.chat if is_chat else READER.completion)(data, headers)
    except DomainError as error:
        return error
    spec_of(ask, "r").SerializeToString()
    return None


@given(body=BODIES, is_chat=st.booleans())
@example(body=CHAT, is_chat=True)
def test_any_json_is_sent_on_or_refused_by_field(body: object, is_chat: bool) -> None:
    """No body of JSON is a bug: what is refused has status 4xx and names a field."""
    error = refusal_of(json.dumps(body, default=str).encode(), {}, is_chat=is_chat)
    if error is not None:
        problem = problem_of(error)
        assert problem.status in (400, 404)
        assert problem.param
        assert json.loads(problem.body())["error"]["code"] == problem.code
    else:
        assert isinstance(body, dict)


@given(data=st.binary(max_size=60), is_chat=st.booleans())
def test_any_bytes_are_refused_as_a_body(data: bytes, is_chat: bool) -> None:
    """Also what is no UTF-8 and no JSON."""
    error = refusal_of(data, {}, is_chat=is_chat)
    assert error is not None
    assert problem_of(error).status == 400


@given(
    headers=st.dictionaries(
        st.sampled_from(
            ["x-tiercel-task", "x-tiercel-deadline-ms", "x-tiercel-slo-kind", "x-tiercel-other"]
        ),
        st.text(st.characters(max_codepoint=255), max_size=20),
    )
)
def test_any_header_of_our_own_is_understood_or_named(headers: dict[str, str]) -> None:
    """A header is never passed over."""
    error = refusal_of(json.dumps(CHAT).encode(), headers, is_chat=True)
    if error is None:
        assert "x-tiercel-other" not in headers
    else:
        assert problem_of(error).param in headers
