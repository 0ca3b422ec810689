"""What a request's JSON body asks for, where a gateway sends it: OpenAI's fields, ours beside."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from router.types import SloKind
from services.common.errors import InvalidArgumentError, NotFoundError
from services.common.openai.body import BODY, Fields, parse_json, token_limit
from services.common.openai.wishes import Wishes, conversation_id, header_of, wishes_of
from services.router_inference.doors.envoy import convert
from services.router_inference.job import Ask

_CACHE_KEY = "prompt_cache_key"
"""OpenAI's own field for requests whose prompts begin alike."""
_TASK_PREFIX = f"{convert.MODEL}/"
_KNOWN = f"{convert.MODEL}, {convert.MODEL}/TASK, a tier, or a name that servers know"
_MOST_MODEL_BYTES = 64
_UNSEEN = "is for due times of tokens, of which a gateway tells nothing"
_COMPACT = (",", ":")
_WISHES = MappingProxyType(
    {
        "task": "task", "deadline": "deadline_ms", "quality_floor": "quality_floor",
        "slo_kind": "slo_kind", "conversation_id": "conversation_id", "priority": "priority",
    }
)  # fmt: skip
"""The wish that gives each field of an Ask."""


@dataclass(frozen=True, slots=True)
class Body:
    """A body, read as far as a picker needs it; the rest is for the server.

    Attributes:
        fields: all of it.
        size: its bytes.
        model: name of the model.
        is_stream: True if the answer is to come piece by piece.
        limit_name: the field that gave the limit of tokens, or may give it.
        max_output_tokens: that limit; None for the task's default.
        wishes: ours, of its `metadata`.
        cache_key: OpenAI's id for prompts that begin alike; empty for none.
    """

    fields: Mapping[str, Any]
    size: int
    model: str
    is_stream: bool
    limit_name: str
    max_output_tokens: int | None
    wishes: Wishes
    cache_key: str

    def rest(self) -> bytes:
        """Returns all of it but the model's name, for `with_model`.

        Raises:
            InvalidArgumentError: It holds a number that JSON has no form for.
        """
        fields = {name: value for name, value in self.fields.items() if name != "model"}
        try:
            text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=_COMPACT)
        except ValueError:
            raise InvalidArgumentError(BODY, "holds a number too large for a double") from None
        try:
            return text.encode()
        except UnicodeEncodeError:  # half a surrogate pair can only be written as an escape
            return json.dumps(fields, separators=_COMPACT).encode()

    def names(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Returns what gave each field of an Ask, for messages; a header goes before the body."""
        names = {"prompt_bytes": BODY, "max_output_tokens": self.limit_name}
        if self.max_output_tokens is None and convert.OUTPUT_TOKENS in headers:
            names["max_output_tokens"] = convert.OUTPUT_TOKENS
        for field, wish in _WISHES.items():
            header = header_of(wish)
            names[field] = header if header in headers else self.wishes.name_of(wish)
        if not self.wishes.conversation_id and convert.CONVERSATION not in headers:
            names["conversation_id"] = _CACHE_KEY
        return names


def with_model(model: str, rest: bytes) -> bytes:
    """Returns a body for a server that calls the model so; see `Body.rest`."""
    name = json.dumps(model).encode()
    return b'{"model":%s%s%s' % (name, b"," if len(rest) > len(b"{}") else b"", rest[1:])


def read_body(data: bytes | bytearray) -> Body:
    """Reads a body.

    Raises:
        InvalidArgumentError: Names the field that is wrong.
    """
    found = parse_json(bytes(data))
    fields = Fields(found)
    model = fields.text("model")
    if not model:
        raise InvalidArgumentError("model", "is empty" if model == "" else "is missing", _KNOWN)
    limit_name, limit = token_limit(fields)
    wishes = wishes_of({}, fields.table("metadata") or {})
    cache_key = fields.get(_CACHE_KEY)
    return Body(
        fields=found,
        size=len(data),
        model=model,
        is_stream=fields.flag("stream"),
        limit_name=limit_name,
        max_output_tokens=limit,
        wishes=wishes,
        cache_key="" if cache_key is None else conversation_id(_CACHE_KEY, cache_key),
    )


def add_body(
    ask: Ask,
    headers: Mapping[str, str],
    body: Body,
    *,
    tiers: Collection[str],
    served: Mapping[str, str],
) -> None:
    """Adds what a body asks for to what the headers did. A header goes before `metadata`.

    Args:
        ask: what the headers asked for.
        headers: they.
        body: the body.
        tiers: names of the tiers.
        served: what servers call their models, with the tier of each; see `Places.models`.

    Raises:
        InvalidArgumentError: Header and body contradict each other.
        NotFoundError: There is no such model.
    """
    wishes = body.wishes
    task, tier = _meaning(body.model, tiers, served)
    if tier and ask.tier not in ("", tier):
        raise InvalidArgumentError(convert.TIER, f"is {ask.tier!r}, but the model is {tier!r}")
    ask.tier = ask.tier or tier
    asked = ask.task or wishes.task
    if task and asked and asked != task:
        name = convert.TASK if ask.task else wishes.name_of("task")
        shown = body.model[:_MOST_MODEL_BYTES]
        raise InvalidArgumentError(name, f"is {asked[:64]!r}, but the model is {shown!r}")
    ask.task = asked or task
    ask.is_stream = body.is_stream
    ask.prompt_bytes, ask.prompt_tokens = body.size, None
    if body.max_output_tokens is not None:  # what the server will do, whatever a header says
        ask.max_output_tokens = body.max_output_tokens
    if wishes.deadline_ms is not None and convert.DEADLINE not in headers:
        ask.deadline_s = wishes.deadline_ms / convert.MS_PER_S
    if wishes.quality_floor is not None and convert.FLOOR not in headers:
        ask.quality_floor = wishes.quality_floor
    if wishes.slo_kind is not None and convert.SLO_KIND not in headers:
        if wishes.slo_kind is SloKind.PER_TOKEN:
            known = ", ".join(convert.SLO_KINDS)
            raise InvalidArgumentError(wishes.name_of("slo_kind"), _UNSEEN, known)
        ask.slo_kind = wishes.slo_kind
    if wishes.token_interval_ms is not None:
        raise InvalidArgumentError(wishes.name_of("token_interval_ms"), _UNSEEN, "none")
    if wishes.priority is not None and convert.PRIORITY not in headers:
        ask.priority = wishes.priority
    ask.conversation_id = ask.conversation_id or wishes.conversation_id or body.cache_key


def _meaning(name: str, tiers: Collection[str], served: Mapping[str, str]) -> tuple[str, str]:
    """Returns task and tier that the name of a model stands for, each empty if it says neither."""
    if name == convert.MODEL:
        return "", ""
    if name.startswith(_TASK_PREFIX) and len(name) > len(_TASK_PREFIX):
        return name.removeprefix(_TASK_PREFIX), ""
    tier = name if name in tiers else served.get(name)
    if tier is None:
        raise NotFoundError("model", name, (convert.MODEL, f"{_TASK_PREFIX}TASK", *tiers))
    return "", tier
