"""Requests of the reference tiers: limits, checks and the state of one sequence."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

DEFAULT_MAX_TOKENS = 16
"""Tokens written when a request names no ``max_tokens``; the vLLM backend's own default."""

SAMPLING_KEYS = ("max_tokens", "temperature", "seed")
MAX_TEMPERATURE = 10.0

STREAM_INTERVAL_S = 0.005
"""Shortest time between two chunks of a stream; a fast tier's tokens share one response."""


class RequestError(ValueError):
    """A request that cannot be served as it is; the text names the field and its limit."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a tier accepts.

    Attributes:
        max_prompt_tokens: Longest prompt; one character is one token.
        max_output_tokens: Most tokens one request may ask for.
        slot_count: Sequences decoded together.
        max_prefill_count: Requests admitted between two decode steps.
        max_queue_count: Requests that may wait; more are refused.
        characters: The vocabulary.
        first_character_id: Token id of ``characters[0]``.
        eos_id: Token id that ends an answer.
    """

    max_prompt_tokens: int
    max_output_tokens: int
    slot_count: int
    max_prefill_count: int
    max_queue_count: int
    characters: str
    first_character_id: int
    eos_id: int

    @classmethod
    def from_model(
        cls, parameters: Mapping[str, Mapping[str, str]], folder: pathlib.Path
    ) -> Limits:
        """Reads limits from ``config.pbtxt``'s parameters, the vocabulary from ``tokenizer.json``.

        Raises:
            ValueError: A parameter is missing, no positive integer, or beyond the model's
                positions.
        """
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]

        def positive(name: str) -> int:
            text = parameters.get(name, {}).get("string_value", "")
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(
                    f"config.pbtxt: parameter {name} is {text!r}, must be an integer of at least 1"
                )
            return int(text)

        limits = cls(
            max_prompt_tokens=positive("tiercel_max_prompt_tokens"),
            max_output_tokens=positive("tiercel_max_output_tokens"),
            slot_count=positive("tiercel_max_batch"),
            max_prefill_count=positive("tiercel_max_prefill"),
            max_queue_count=positive("tiercel_max_queue"),
            characters=tokenizer["characters"],
            first_character_id=tokenizer["first_character_id"],
            eos_id=tokenizer["eos_id"],
        )
        longest = limits.max_prompt_tokens + limits.max_output_tokens
        if longest > positions:
            raise ValueError(
                f"config.pbtxt: tiercel_max_prompt_tokens + tiercel_max_output_tokens: {longest}, "
                f"the model has {positions} positions"
            )
        return limits

    def encode(self, text: str) -> list[int]:
        """Encodes a prompt, one token per character.

        Raises:
            RequestError: The prompt is empty, too long, or holds a character outside the
                vocabulary.
        """
        if not text:
            raise RequestError("text_input: must not be empty")
        if len(text) > self.max_prompt_tokens:
            raise RequestError(
                f"text_input: {len(text)} characters, the limit is {self.max_prompt_tokens}"
            )
        ids = [self.characters.find(character) for character in text]
        if -1 in ids:
            at = ids.index(-1)
            raise RequestError(
                f"text_input: character {text[at]!r} at position {at} is outside the vocabulary "
                f"{self.characters!r}; a prompt that works: 'sort:hgcafde='"
            )
        return [each + self.first_character_id for each in ids]


class Sequence:
    """One request on its way: prompt, sampling, what was written and what was sent.

    Attributes:
        sender: Triton's response sender.
        expires_s: Monotonic time after which a *waiting* request is dropped; infinite without a
            timeout.
        cancelled: Set by the watcher, acted on by the engine between iterations.
        closed: The final response was sent.
        next_poll_s: Monotonic time from which Triton is asked again whether it was cancelled.
        finish_reason: ``stop`` or ``length`` once finished, else None.
    """

    def __init__(
        self,
        *,
        sender: Any,
        limits: Limits,
        prompt: str,
        stream: bool,
        prepend_prompt: bool,
        sampling: Mapping[str, Any],
        timeout_us: int,
        extra_outputs: Mapping[str, bool],
    ) -> None:
        self.sender = sender
        self.prompt_ids = limits.encode(prompt)
        self.stream = stream
        self.max_tokens = _max_tokens(sampling.get("max_tokens"), limits)
        self.temperature = _temperature(sampling.get("temperature"))
        self._random = (
            np.random.default_rng(_seed(sampling.get("seed"))) if self.temperature > 0.0 else None
        )
        self.timeout_us = timeout_us
        self.expires_s = time.monotonic() + timeout_us / 1e6 if timeout_us > 0 else math.inf
        self.return_finish_reason = extra_outputs.get("return_finish_reason", False)
        self.return_num_input_tokens = extra_outputs.get("return_num_input_tokens", False)
        self.return_num_output_tokens = extra_outputs.get("return_num_output_tokens", False)
        self.cancelled = False
        self.closed = False
        self.next_poll_s = time.monotonic()
        self._next_chunk_s = 0.0
        self.finish_reason: str | None = None
        self._limits = limits
        self._token_count = 0
        self._last_token = 0
        self._unsent_text = prompt if prepend_prompt else ""
        self._unsent_count = 0

    @property
    def last_token(self) -> int:
        """The token the next decode step reads."""
        return self._last_token

    def append(self, token: int) -> bool:
        """Takes the next token; says whether the sequence is finished."""
        self._token_count += 1
        self._unsent_count += 1
        self._last_token = token
        place = token - self._limits.first_character_id
        if token == self._limits.eos_id:
            self.finish_reason = "stop"
        elif 0 <= place < len(self._limits.characters):
            self._unsent_text += self._limits.characters[place]
        if self.finish_reason is None and self._token_count >= self.max_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def draw(self, logits_V: np.ndarray) -> int:
        """Samples a token at the request's temperature."""
        assert self._random is not None
        scaled = logits_V.astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled.max())
        return int(self._random.choice(len(weights), p=weights / weights.sum()))

    def chunk_is_due(self) -> bool:
        """Says whether a stream should send what it has: the first token at once, then paced."""
        if not self.stream or time.monotonic() < self._next_chunk_s:
            return False
        self._next_chunk_s = time.monotonic() + STREAM_INTERVAL_S
        return True

    def take_unsent(self) -> tuple[str, int]:
        """Returns text and token count since the last call."""
        taken = self._unsent_text, self._unsent_count
        self._unsent_text, self._unsent_count = "", 0
        return taken


def parse_request(request: Any, sender: Any, limits: Limits, pb_utils: Any) -> Sequence:
    """Reads a Triton request.

    Args:
        request: ``pb_utils.InferenceRequest``.
        sender: Its response sender.
        limits: What the tier accepts.
        pb_utils: Triton's module; passed in because it exists only inside Triton.

    Raises:
        RequestError: Something in it is wrong; the text names the field.
    """

    def tensor(name: str) -> np.ndarray | None:
        found = pb_utils.get_input_tensor_by_name(request, name)
        if found is None:
            return None
        values: np.ndarray = found.as_numpy().reshape(-1)
        if values.size != 1:
            raise RequestError(f"{name}: must hold exactly 1 element, got {values.size}")
        return values

    def flag(name: str) -> bool | None:
        values = tensor(name)
        return None if values is None else bool(values[0])

    text = tensor("text_input")
    if text is None:
        raise RequestError("text_input: is missing")
    sampling_text = tensor("sampling_parameters")
    if sampling_text is None:
        everything = json.loads(request.parameters() or "{}")
        sampling = {key: everything[key] for key in SAMPLING_KEYS if key in everything}
    else:
        sampling = _parse_sampling(_utf8(sampling_text[0], "sampling_parameters"))
    stream = flag("stream") or False
    excluded = flag("exclude_input_in_output")
    if stream and excluded is False:
        raise RequestError("exclude_input_in_output: must not be false when stream is true")
    extras = ("return_finish_reason", "return_num_input_tokens", "return_num_output_tokens")
    return Sequence(
        sender=sender,
        limits=limits,
        prompt=_utf8(text[0], "text_input"),
        stream=stream,
        prepend_prompt=not (stream if excluded is None else excluded),
        sampling=sampling,
        timeout_us=int(request.timeout()),
        extra_outputs={name: flag(name) or False for name in extras},
    )


def _utf8(value: Any, field: str) -> str:
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{field}: invalid UTF-8 at byte {error.start}") from None


def _parse_sampling(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError) as error:
        raise RequestError(f"sampling_parameters: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError("sampling_parameters: must be a JSON object")
    unknown = [key for key in content if key not in SAMPLING_KEYS]
    if unknown:
        raise RequestError(
            f"sampling_parameters: unknown key {unknown[0]!r}; "
            f"known keys: {', '.join(SAMPLING_KEYS)}"
        )
    return content


def _number(value: Any, field: str) -> float:
    """Reads a JSON number, or text that holds one (the vLLM backend takes both)."""
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{field}: {value!r} is not a number") from None
    if not math.isfinite(number):
        raise RequestError(f"{field}: {value!r} is not finite")
    return number


def _max_tokens(value: Any, limits: Limits) -> int:
    if value is None:
        return min(DEFAULT_MAX_TOKENS, limits.max_output_tokens)
    number = _number(value, "max_tokens")
    if number != int(number) or not 1 <= number <= limits.max_output_tokens:
        raise RequestError(
            f"max_tokens: {value!r} must be an integer in 1..{limits.max_output_tokens}"
        )
    return int(number)


def _temperature(value: Any) -> float:
    """Unlike vLLM, where 1.0 is the default, a reference tier is greedy unless asked otherwise."""
    if value is None:
        return 0.0
    number = _number(value, "temperature")
    if not 0.0 <= number <= MAX_TEMPERATURE:
        raise RequestError(f"temperature: {value!r} must be in 0..{MAX_TEMPERATURE:g}")
    return number


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    number = _number(value, "seed")
    if number != int(number) or not 0 <= number < 2**63:
        raise RequestError(f"seed: {value!r} must be an integer in 0..2**63-1")
    return int(value) if not isinstance(value, float) else int(number)
