"""Bodies that gateways send: what is read of them, and how they are written again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.types import Priority, SloKind
from services.common.errors import InvalidArgumentError, NotFoundError
from services.router_inference.doors.envoy.body import add_body, read_body, with_model
from services.router_inference.job import Ask

TIERS = ("small", "large")
SERVED = {"llama-8b": "small", "any": ""}
MESSAGES = [{"role": "user", "content": "größer als \ud83d\ude00?"}]


def body(**fields: Any) -> bytes:
    """Returns a request's body."""
    return json.dumps({"model": "tiercel", "messages": MESSAGES} | fields).encode()


def asked(headers: dict[str, str] | None = None, **fields: Any) -> Ask:
    """Returns what a body asks for."""
    given = headers or {}
    ask = Ask(
        task=given.get("x-tiercel-task", ""),
        tier=given.get("x-tiercel-tier", ""),
        conversation_id=given.get("x-tiercel-conversation-id", ""),
        max_output_tokens=7 if "x-tiercel-max-output-tokens" in given else None,
        deadline_s=0.3 if "x-tiercel-deadline-ms" in given else None,
    )
    add_body(ask, given, read_body(body(**fields)), tiers=TIERS, served=SERVED)
    return ask


@pytest.mark.parametrize(
    ("model", "task", "tier"),
    [
        ("tiercel", "", ""),
        ("tiercel/piqa", "piqa", ""),
        ("large", "", "large"),
        ("llama-8b", "", "small"),
        ("any", "", ""),
    ],
)
def test_a_model_is_the_mesh_a_task_a_tier_or_what_servers_call_it(
    model: str, task: str, tier: str
) -> None:
    """What every tier is called leaves the choice to the router."""
    ask = asked(model=model)
    assert (ask.task, ask.tier) == (task, tier)


def test_wishes_stand_in_the_metadata() -> None:
    """As at the OpenAI-shaped door; the client's own metadata means nothing here."""
    wishes = {
        "tiercel_task": "piqa", "tiercel_deadline_ms": "800", "tiercel_quality_floor": "0.5",
        "tiercel_slo_kind": "first_token", "tiercel_conversation_id": "a",
        "tiercel_priority": "low", "user": "4711",
    }  # fmt: skip
    ask = asked(metadata=wishes, max_completion_tokens=16, stream=True)
    assert (ask.task, ask.deadline_s, ask.quality_floor) == ("piqa", 0.8, 0.5)
    assert (ask.slo_kind, ask.priority) == (SloKind.FIRST_TOKEN, Priority.LOW)
    assert (ask.conversation_id, ask.max_output_tokens, ask.is_stream) == ("a", 16, True)


def test_a_header_goes_before_the_metadata() -> None:
    """A gateway may set it; the limit of tokens is what the server will read."""
    headers = {
        "x-tiercel-task": "hard", "x-tiercel-deadline-ms": "300",
        "x-tiercel-conversation-id": "mine", "x-tiercel-max-output-tokens": "7",
    }  # fmt: skip
    wishes = {"tiercel_task": "piqa", "tiercel_deadline_ms": 800, "tiercel_conversation_id": "a"}
    ask = asked(headers, metadata=wishes, max_tokens=16)
    assert (ask.task, ask.deadline_s, ask.conversation_id) == ("hard", 0.3, "mine")
    assert ask.max_output_tokens == 16
    assert asked(headers).max_output_tokens == 7


def test_the_size_of_the_body_stands_for_that_of_the_prompt() -> None:
    """As where only its length is told; OpenAI's own key names a conversation."""
    ask = asked(prompt_cache_key="b")
    assert (ask.prompt_bytes, ask.prompt_tokens) == (len(body(prompt_cache_key="b")), None)
    assert (ask.conversation_id, ask.is_stream) == ("b", False)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"tiercel"', "body"),
        (b"\xff\xfe", "body"),
        (b'{"model": "tiercel", "seed": NaN}', "body"),
        (b"[" * 100_000, "body"),
        (b"{}", "model"),
        (b'{"model": ""}', "model"),
        (b'{"model": null}', "model"),
        (b'{"model": 7}', "model"),
        (b'{"model": "\\ud800"}', "model"),
        (body(stream="yes"), "stream"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(max_tokens=8, max_completion_tokens=9), "max_tokens"),
        (body(metadata=[]), "metadata"),
        (body(metadata={"tiercel_deadline_ms": "soon"}), "metadata.tiercel_deadline_ms"),
        (body(metadata={"tiercel_dead_line": 1}), "metadata.tiercel_dead_line"),
        (body(prompt_cache_key=["a"]), "prompt_cache_key"),
    ],
)
def test_what_is_wrong_is_named(data: bytes, field: str) -> None:
    """By the field, or as the body."""
    with pytest.raises(InvalidArgumentError) as caught:
        read_body(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("headers", "fields", "field"),
    [
        ({"x-tiercel-tier": "small"}, {"model": "large"}, "x-tiercel-tier"),
        ({"x-tiercel-task": "a"}, {"model": "tiercel/b"}, "x-tiercel-task"),
        ({}, {"model": "tiercel/b", "metadata": {"tiercel_task": "a"}}, "metadata.tiercel_task"),
    ],
)
def test_a_contradiction_is_refused(
    headers: dict[str, str], fields: dict[str, Any], field: str
) -> None:
    """Nobody guesses which of both was meant."""
    with pytest.raises(InvalidArgumentError) as caught:
        asked(headers, **fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"tiercel_slo_kind": "per_token"}, "metadata.tiercel_slo_kind"),
        ({"tiercel_token_interval_ms": 200}, "metadata.tiercel_token_interval_ms"),
    ],
)
def test_due_times_of_tokens_are_refused_since_a_gateway_tells_of_none(
    wishes: dict[str, Any], field: str
) -> None:
    """As in a header: nobody would keep them."""
    with pytest.raises(InvalidArgumentError) as caught:
        asked(metadata=wishes, stream=True)
    assert caught.value.field == field


@pytest.mark.parametrize("model", ["gpt-4", "tiercel/", "Tiercel", "x" * 10_000])
def test_a_model_of_no_name_is_not_found(model: str) -> None:
    """The error says what there is, and is no longer than that."""
    with pytest.raises(NotFoundError, match="tiercel/TASK, small, large") as caught:
        asked(model=model)
    assert len(caught.value.message) < 1_000


def test_only_the_model_is_written_anew() -> None:
    """All else stays what it was, text outside ASCII and half surrogate pairs too."""
    fields = {"n": 1, "x": [1.5, -2e-3, True, None], "big": 2**70, "model": "tiercel"}
    given = (
        json.dumps(fields | {"messages": MESSAGES}, ensure_ascii=False)
        .encode("utf-16", "surrogatepass")
        .decode("utf-16")
    )
    found = json.loads(with_model("any", read_body(given.encode()).rest()))
    assert found == json.loads(given) | {"model": "any"}
    lonely = b'{"model":"tiercel","prompt":"\\ud800"}'
    assert json.loads(with_model("any", read_body(lonely).rest()))["prompt"] == "\ud800"
    assert with_model('a"b', read_body(b'{"model":"tiercel"}').rest()) == b'{"model":"a\\"b"}'


def test_a_number_beyond_doubles_is_refused_where_it_would_be_written() -> None:
    """JSON has no form for what Python makes of it."""
    with pytest.raises(InvalidArgumentError, match="too large for a double"):
        read_body(b'{"model": "tiercel", "temperature": 1e999}').rest()


def test_an_error_names_what_gave_the_field() -> None:
    """A header, a field of the metadata, or OpenAI's own."""
    read = read_body(body(max_completion_tokens=3, metadata={"tiercel_deadline_ms": 5}))
    names = read.names({"x-tiercel-task": "a"})
    assert names["task"] == "x-tiercel-task"
    assert names["deadline"] == "metadata.tiercel_deadline_ms"
    assert names["max_output_tokens"] == "max_completion_tokens"
    assert names["prompt_bytes"] == "body"
    assert names["conversation_id"] == "prompt_cache_key"
    given = {"x-tiercel-max-output-tokens": "3"}
    assert read_body(body()).names(given)["max_output_tokens"] == "x-tiercel-max-output-tokens"
