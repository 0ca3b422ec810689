"""Parameters of KServe requests: Triton's own, Tiercel's, and those of sampling."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as kserve

from router.types import Priority, SloKind
from services.common import priorities
from services.common.checks import Checks
from services.router_inference.doors.kserve.models import TensorError

TASK = "tiercel_task"
DEADLINE = "tiercel_deadline_ms"
FLOOR = "tiercel_quality_floor"
SLO_KIND = "tiercel_slo_kind"
TOKEN_INTERVAL = "tiercel_token_interval_ms"  # noqa: S105 - no password
CONVERSATION = "tiercel_conversation_id"
TIMEOUT, PRIORITY, SEQUENCE = "timeout", "priority", "sequence_id"
OWN = (TASK, DEADLINE, FLOOR, SLO_KIND, TOKEN_INTERVAL, CONVERSATION)
EMPTY_FINAL = "triton_enable_empty_final_response"
MAX_TOKENS, TEMPERATURE, SEED = "max_tokens", "temperature", "seed"
SAMPLING_KEYS = (MAX_TOKENS, TEMPERATURE, SEED)
# What asks for nothing but what a greedy answer is anyhow.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_tokens": (0,),
    "stop": ([], ""),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "use_beam_search": (False,),
    "early_stopping": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
}
_KINDS = {
    TIMEOUT: ("int64_param",),
    PRIORITY: ("int64_param", "uint64_param"),
    SEQUENCE: ("int64_param", "uint64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    EMPTY_FINAL: ("bool_param",),
}
"""Parameters of Triton's own, and what they may be."""
_SLO_KINDS = {kind.value: kind for kind in SloKind}
_LONGEST_SAMPLING_BYTES = 16_384
_LONGEST_NUMBER = 64
_SAMPLING = "sampling_parameters."
_US_PER_S, _MS_PER_S = 1e6, 1e3
_NONE: Mapping[str, Any] = {}


def take_conversation(request: kserve.ModelInferRequest, checks: Checks) -> str:
    """Takes our own parameter with a conversation's id out of a request, and returns the id.

    It is taken out since requests that differ in nothing else have one form. What is no text is
    noted in `checks`.
    """
    if CONVERSATION not in request.parameters:
        return ""
    value = request.parameters[CONVERSATION]
    is_text = value.WhichOneof("parameter_choice") == "string_param"
    text: str = value.string_param
    del request.parameters[CONVERSATION]
    checks.require(is_text, CONVERSATION, "is no text")
    return text


def sequence_of(parameters: Mapping[str, Any]) -> str:
    """Returns Triton's own id of a sequence as a conversation's, empty for none.

    0 and the empty text stand for none, as in Triton.
    """
    value = parameters.get(SEQUENCE, 0)
    return f"sequence {value}" if value else ""


def read_parameters(request: kserve.ModelInferRequest) -> Mapping[str, Any]:
    """Returns the parameters by name.

    Raises:
        TensorError: One of Triton's own has another type, or there is no such one.
    """
    if not request.parameters:
        return _NONE
    found = {}
    for key, value in request.parameters.items():
        kind = value.WhichOneof("parameter_choice")
        kinds = _KINDS.get(key)
        if kinds is None and key.startswith("triton_"):
            raise TensorError(
                key,
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
                f"following keys starting with 'triton_' are allowed: {EMPTY_FINAL}",
            )
        if kind is None or (kinds is not None and kind not in kinds):
            expected = " or ".join(kinds or ("int64_param", "bool_param", "string_param"))
            text = f"invalid value type for '{key}' parameter, expected {expected}."
            raise TensorError(key, text)
        found[key] = getattr(value, kind)
    return found


class Wishes:
    """What a request's parameters ask for; None where they do not say.

    Attributes:
        task: name of the task; empty: the router's default.
        deadline_s: time until the deadline, seconds.
        deadline_field: the parameter that says so.
        quality_floor: lowest quality accepted.
        slo_kind: what the deadline is measured against.
        token_interval_s: time between the due times of two tokens, seconds.
        priority: how the request stands beside others.
    """

    __slots__ = (
        "deadline_field", "deadline_s", "priority", "quality_floor", "slo_kind", "task",
        "token_interval_s",
    )  # fmt: skip

    def __init__(self, parameters: Mapping[str, Any], checks: Checks) -> None:
        """Reads them; what is no number or not known is noted in `checks`."""
        for key in parameters:
            if key.startswith("tiercel_") and key not in OWN:
                checks.require(False, key, "is not known", ", ".join(OWN))
        task = parameters.get(TASK, "")
        checks.require(isinstance(task, str), TASK, "is no text")
        self.task: str = task
        self.quality_floor = _number(parameters, FLOOR, checks) or 0.0
        deadline_ms = _number(parameters, DEADLINE, checks)
        self.deadline_field = DEADLINE
        self.deadline_s = None if deadline_ms is None else deadline_ms / _MS_PER_S
        timeout_us = parameters.get(TIMEOUT, 0)
        # 0 stands for none, as in Triton. Of two, the earlier is the deadline.
        if timeout_us and not (
            self.deadline_s is not None and self.deadline_s <= timeout_us / _US_PER_S
        ):
            self.deadline_s = timeout_us / _US_PER_S
            self.deadline_field = TIMEOUT
        self.slo_kind: SloKind | None = None
        if SLO_KIND in parameters:
            kind = parameters[SLO_KIND]
            self.slo_kind = _SLO_KINDS.get(kind) if isinstance(kind, str) else None
            known = ", ".join(_SLO_KINDS)
            checks.require(self.slo_kind is not None, SLO_KIND, "is not known", known)
        interval_ms = _number(parameters, TOKEN_INTERVAL, checks)
        self.token_interval_s = None if interval_ms is None else interval_ms / _MS_PER_S
        number = parameters.get(PRIORITY, 0)
        priority = priorities.of_number(number)
        checks.require(priority is not None, PRIORITY, f"is {number}", "0 or more")
        self.priority = priority or Priority.NORMAL


class Sampling(NamedTuple):
    """How tokens are drawn, and how many; None where a request does not say.

    Attributes:
        max_tokens: limit of output tokens.
        temperature: sampling temperature.
        seed: sampling seed.
    """

    max_tokens: int | None
    temperature: float
    seed: int | None


def read_sampling(values: Mapping[str, Any], checks: Checks) -> Sampling:
    """Reads it from a mapping that may hold other things too."""
    return Sampling(
        _whole(values, MAX_TOKENS, checks),
        _number(values, TEMPERATURE, checks, f"{_SAMPLING}{TEMPERATURE}") or 0.0,
        _whole(values, SEED, checks),
    )


def read_sampling_json(text: bytes, checks: Checks) -> Sampling:
    """Reads it from a JSON object, in which nothing else may ask for anything."""
    return read_sampling(_read_json(text, checks), checks)


def _read_json(text: bytes, checks: Checks) -> Mapping[str, Any]:
    if not text.strip():
        return _NONE
    field = _SAMPLING.rstrip(".")
    size, most = len(text), _LONGEST_SAMPLING_BYTES
    if not checks.require(size <= most, field, f"has {size} bytes", f"{most} bytes"):
        return _NONE
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not checks.require(isinstance(found, dict), field, "is no JSON object"):
        return _NONE
    known = ", ".join(SAMPLING_KEYS)
    for key, value in found.items():
        if key in SAMPLING_KEYS or value is None or value in _NEUTRAL.get(key, ()):
            continue
        checks.require(False, _SAMPLING + key, "is not served", known)
    return dict(found)


def _number(values: Mapping[str, Any], key: str, checks: Checks, field: str = "") -> float | None:
    """Returns a number, or a text that holds one: some clients can send no fractions."""
    value = values.get(key)
    if value is None:
        return None
    is_short = not isinstance(value, str) or len(value) <= _LONGEST_NUMBER
    try:
        if not isinstance(value, bool) and isinstance(value, int | float | str) and is_short:
            return float(value)
    except (ValueError, OverflowError):
        pass
    checks.require(False, field or key, "is no number")
    return None


def _whole(values: Mapping[str, Any], key: str, checks: Checks) -> int | None:
    """Returns a whole number, or one that a text holds."""
    value = values.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = _number(values, key, checks, _SAMPLING + key)
    if number is None:
        return None
    if checks.require(
        math.isfinite(number) and number == int(number), _SAMPLING + key, "is no whole number"
    ):
        return int(number)
    return None
