"""Requests to the router's messages, and its messages to OpenAI's JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from services.common import slo_kinds
from services.common.enum_names import name_of
from services.common.priorities import MESSAGE
from services.common.times import seconds_of, set_duration
from services.openai_door.errors import Headers
from services.openai_door.request import Ask
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2

_MAY_BE_UNSAID = ("first_token", "queue", "prefill", "decode", "hop")
"""Timings of an answer without a token, or of a router of an earlier version, may lack them."""
_FINISHED = "stop"
"""Said where a tier does not say why it stopped: OpenAI's clients need one of few words."""
_BREAK = b"\n\n"
_ENCODE = json.JSONEncoder(ensure_ascii=False).encode
DONE = b"data: [DONE]" + _BREAK
"""The end of a stream that is complete."""


def spec_of(ask: Ask, request_id: str) -> pb2.GenerationSpec:
    """Returns what a router is asked."""
    wishes = ask.wishes
    spec = pb2.GenerationSpec(
        prompt=ask.prompt,
        task=ask.task,
        tier=ask.tier,
        request_id=request_id,
        quality_floor=wishes.quality_floor or 0.0,
        conversation_id=ask.conversation_id,
    )
    if ask.max_output_tokens is not None:
        spec.max_output_tokens = ask.max_output_tokens
    if ask.temperature is not None:
        spec.sampling.temperature = ask.temperature
    if ask.seed is not None:
        spec.sampling.seed = ask.seed
    if wishes.deadline_ms is not None:
        set_duration(spec.deadline, wishes.deadline_ms / 1e3)
    if wishes.slo_kind is not None:
        spec.slo_kind = slo_kinds.MESSAGE[wishes.slo_kind]
    if wishes.token_interval_ms is not None:
        set_duration(spec.token_interval, wishes.token_interval_ms / 1e3)
    if wishes.priority is not None:
        spec.priority = MESSAGE[wishes.priority]
    return spec


def facts_of(completion: pb2.Completion, elapsed_s: float) -> dict[str, Any]:
    """Returns the object `tiercel` of an answer: who answered, in time or not, and why so.

    Args:
        completion: What the router says.
        elapsed_s: Time since the request came to this door, seconds.
    """
    timings: Any = completion.timings
    timings_ms = {"dispatch": _ms(timings.dispatch), "total": _ms(timings.total)}
    for name in _MAY_BE_UNSAID:
        if timings.HasField(name):
            timings_ms[name] = _ms(getattr(timings, name))
    timings_ms["door"] = round((elapsed_s - seconds_of(timings.total)) * 1e3, 3)
    return {
        "request_id": completion.request_id,
        "tier": completion.tier,
        "endpoint": completion.endpoint,
        "policy": completion.policy,
        "policy_version": completion.policy_version,
        "on_time": completion.on_time,
        "early_ms": _ms(timings.early) if timings.HasField("early") else None,
        "quality": round(completion.quality, 6),
        "step_down_reason": _step_down(completion),
        "rescued": completion.rescued,
        "retry_count": completion.retry_count,
        "conversation_stay": _stay(completion),
        "timings_ms": timings_ms,
    }


def _ms(span: Duration) -> float:
    return round(seconds_of(span) * 1e3, 3)


def headers_of(completion: pb2.Completion) -> Headers:
    """Returns the same facts as headers, as far as one line each says them."""
    found = [
        (b"x-tiercel-tier", completion.tier.encode("ascii", "replace")),
        (b"x-tiercel-endpoint", completion.endpoint.encode("ascii", "replace")),
        (b"x-tiercel-policy", completion.policy.encode("ascii", "replace")),
        (b"x-tiercel-policy-version", completion.policy_version.encode("ascii", "replace")),
        (b"x-tiercel-on-time", b"true" if completion.on_time else b"false"),
    ]
    reason = _step_down(completion)
    if reason is not None:
        found.append((b"x-tiercel-step-down-reason", reason.encode()))
    return tuple(found)


def _step_down(completion: pb2.Completion) -> str | None:
    reason = completion.step_down_reason
    return name_of(common_pb2.StepDownReason, reason) if reason else None


def _stay(completion: pb2.Completion) -> str | None:
    stay = completion.conversation_stay
    return name_of(common_pb2.ConversationStay, stay) if stay else None


@dataclass(slots=True, kw_only=True)
class Envelope:
    """What all JSON of one answer has in common.

    Attributes:
        ask: The request.
        answer_id: Its id, as OpenAI writes one.
        created: When it came, seconds since 1970.
        prompt_tokens: Length of the prompt, estimated from its bytes.
    """

    ask: Ask
    answer_id: str
    created: int
    prompt_tokens: int

    @classmethod
    def of(cls, ask: Ask, request_id: str, created: int, bytes_per_token: float) -> Envelope:
        """Returns the envelope of an answer that begins."""
        size = len(ask.prompt) if ask.prompt.isascii() else len(ask.prompt.encode("utf-8"))
        return cls(
            ask=ask,
            answer_id=f"{'chatcmpl' if ask.is_chat else 'cmpl'}-{request_id}",
            created=created,
            prompt_tokens=max(1, round(size / bytes_per_token)),
        )

    def whole(self, reply: pb2.GenerateResponse, elapsed_s: float) -> bytes:
        """Returns the answer in one piece, so long after its request came."""
        completion, ask = reply.completion, self.ask
        choice: dict[str, Any] = {
            "index": 0,
            "logprobs": None,
            "finish_reason": completion.finish_reason or _FINISHED,
        }
        if ask.is_chat:
            choice["message"] = {"role": "assistant", "content": reply.text, "refusal": None}
        else:
            choice["text"] = reply.text
        return _json(
            {
                "id": self.answer_id,
                "object": "chat.completion" if ask.is_chat else "text_completion",
                "created": self.created,
                "model": ask.model,
                "choices": [choice],
                "usage": self._usage(completion),
                "tiercel": facts_of(completion, elapsed_s),
            }
        )

    def pieces(self) -> Pieces:
        """Returns what writes the answer piece by piece."""
        return Pieces(self)

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.answer_id,
            "object": kind,
            "created": self.created,
            "model": self.ask.model,
        }

    def _usage(self, completion: pb2.Completion) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion.output_token_count,
            "total_tokens": self.prompt_tokens + completion.output_token_count,
        }


class Pieces:
    """Writes the events of one stream.

    All but the text of a piece is the same in each, and made once.
    """

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        ask = envelope.ask
        kind = "chat.completion.chunk" if ask.is_chat else "text_completion"
        # Where usage was asked for, events without it say so.
        self._head = envelope._head(kind) | ({"usage": None} if ask.with_usage else {})
        slot = '"TEXT"'
        text = _ENCODE(self._event(self._delta("TEXT"), None))
        before, _, after = text.rpartition(slot)
        self._before, self._after = f"data: {before}".encode(), after.encode() + _BREAK

    def first(self) -> bytes:
        """Returns what comes before the first piece of text; nothing for plain completions."""
        if not self._envelope.ask.is_chat:
            return b""
        delta = {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return _event(self._event(delta, None))

    def text(self, text: str) -> bytes:
        """Returns a piece of text."""
        return b"".join((self._before, _ENCODE(text).encode(), self._after))

    def last(self, completion: pb2.Completion, elapsed_s: float) -> bytes:
        """Returns the end of a complete stream, so long after its request came."""
        delta = {"delta": {}, "logprobs": None} if self._envelope.ask.is_chat else self._delta("")
        end = self._event(delta, completion.finish_reason or _FINISHED)
        found = [_event(end | {"tiercel": facts_of(completion, elapsed_s)})]
        if self._envelope.ask.with_usage:
            usage = {"choices": [], "usage": self._envelope._usage(completion)}
            found.append(_event(self._head | usage))
        return b"".join((*found, DONE))

    def _delta(self, text: str) -> dict[str, Any]:
        if self._envelope.ask.is_chat:
            return {"logprobs": None, "delta": {"content": text}}
        return {"logprobs": None, "text": text}

    def _event(self, delta: Mapping[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": finish_reason, **delta}
        return self._head | {"choices": [choice]}


def error_event(body: bytes) -> bytes:
    """Returns the event of a stream that broke; no end follows it."""
    return b"data: " + body + _BREAK


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + _json(value) + _BREAK


def _json(value: Mapping[str, Any]) -> bytes:
    return _ENCODE(value).encode("utf-8")


def model_json(name: str, created: int) -> dict[str, Any]:
    """Returns the entry of a model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tiercel"}
