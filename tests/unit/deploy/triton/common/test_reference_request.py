"""Requests of the reference tiers' Triton model: what is accepted, what is refused and how."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference_request as serving

REFERENCE = pathlib.Path(serving.__file__).parents[1] / "reference"
SMALL = REFERENCE / "small" / "1"


PARAMETERS = {
    "tiercel_max_prompt_tokens": {"string_value": "48"},
    "tiercel_max_output_tokens": {"string_value": "16"},
    "tiercel_max_batch": {"string_value": "8"},
    "tiercel_max_prefill": {"string_value": "4"},
    "tiercel_max_queue": {"string_value": "1024"},
}
LIMITS = serving.Limits.from_model(PARAMETERS, SMALL)


@dataclasses.dataclass
class FakeTensor:
    """Stands for a tensor of Triton's python backend."""

    values: np.ndarray[Any, Any]

    def as_numpy(self) -> np.ndarray[Any, Any]:
        """Returns the values."""
        return self.values


@dataclasses.dataclass
class FakeRequest:
    """Stands for a request of Triton's python backend."""

    inputs: dict[str, Any]
    request_parameters: str = "{}"
    timeout_us: int = 0

    def parameters(self) -> str:
        """Returns the request parameters as JSON text."""
        return self.request_parameters

    def timeout(self) -> int:
        """Returns the timeout in microseconds."""
        return self.timeout_us


class FakeBackendUtils:
    """Stands for Triton's ``pb_utils``."""

    @staticmethod
    def get_input_tensor_by_name(request: FakeRequest, name: str) -> FakeTensor | None:
        """Looks an input up."""
        value = request.inputs.get(name)
        if value is None:
            return None
        values = value if isinstance(value, list) else [value]
        kind = np.bool_ if isinstance(values[0], bool) else np.object_
        return FakeTensor(np.array(values, dtype=kind))


def parse(request_parameters: str = "{}", timeout_us: int = 0, **inputs: Any) -> Any:
    """Parses a request with the given inputs; the prompt is ``rev:abcde=`` unless given."""
    inputs.setdefault("text_input", b"rev:abcde=")
    request = FakeRequest(inputs, request_parameters, timeout_us)
    return serving.parse_request(request, None, LIMITS, FakeBackendUtils)


def test_defaults_are_greedy_and_whole() -> None:
    """A bare prompt is answered greedily, in one piece, with the prompt in front."""
    sequence = parse()
    assert (sequence.stream, sequence.temperature, sequence.max_tokens) == (False, 0.0, 16)
    assert sequence.take_unsent() == ("rev:abcde=", 0)


def test_sampling_parameters_are_read() -> None:
    """JSON text sets tokens, temperature and seed; numbers may come as text."""
    sequence = parse(sampling_parameters=b'{"max_tokens": 3, "temperature": "0.5", "seed": 7}')
    assert (sequence.max_tokens, sequence.temperature) == (3, 0.5)


def test_request_parameters_stand_in_for_sampling_parameters() -> None:
    """Without the tensor the request's own parameters count; unrelated ones are left alone."""
    sequence = parse(request_parameters='{"max_tokens": 5, "traceparent": "00-1-2-01"}')
    assert sequence.max_tokens == 5


def test_seed_fixes_the_draws() -> None:
    """The same seed draws the same tokens from the same logits."""
    logits = np.zeros(40, dtype=np.float32)
    first, second = (
        [sequence.draw(logits) for _ in range(20)]
        for sequence in (
            parse(sampling_parameters=b'{"temperature": 1, "seed": 5}'),
            parse(sampling_parameters=b'{"temperature": 1, "seed": 5}'),
        )
    )
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text_input": b""}, "text_input: must not be empty"),
        ({"text_input": b"\xff"}, "text_input: invalid UTF-8 at byte 0"),
        ({"text_input": b"rev:A="}, "text_input: character 'A' at position 4 is outside"),
        ({"text_input": b"a" * 49}, "text_input: 49 characters, the limit is 48"),
        ({"text_input": [b"a", b"b"]}, "text_input: must hold exactly 1 element, got 2"),
        ({"sampling_parameters": b"{"}, "sampling_parameters: not valid JSON"),
        ({"sampling_parameters": b"[" * 9999}, "sampling_parameters: not valid JSON"),
        ({"sampling_parameters": b"[]"}, "sampling_parameters: must be a JSON object"),
        ({"sampling_parameters": b'{"n": 2}'}, "unknown key 'n'; known keys: max_tokens, temp"),
        ({"sampling_parameters": b'{"max_tokens": 0}'}, r"max_tokens: 0 must be .* 1\.\.16"),
        ({"sampling_parameters": b'{"max_tokens": 17}'}, r"max_tokens: 17 must be .* 1\.\.16"),
        ({"sampling_parameters": b'{"max_tokens": true}'}, "max_tokens: True is not a number"),
        ({"sampling_parameters": b'{"temperature": -1}'}, r"temperature: -1 must be in 0\.\.10"),
        ({"sampling_parameters": b'{"temperature": NaN}'}, "temperature: nan is not finite"),
        ({"sampling_parameters": b'{"temperature": 1, "seed": -1}'}, "seed: -1 must be"),
        ({"stream": True, "exclude_input_in_output": False}, "exclude_input_in_output: must not"),
    ],
)
def test_bad_input_names_field_and_limit(inputs: dict[str, Any], message: str) -> None:
    """Each mistake is one error that says which field and what would be right."""
    with pytest.raises(serving.RequestError, match=message):
        parse(**inputs)


@given(st.binary(max_size=80), st.binary(max_size=80))
def test_any_bytes_are_answered_or_refused(prompt: bytes, sampling: bytes) -> None:
    """No bytes lead to another error than a refusal."""
    with contextlib.suppress(serving.RequestError):
        sequence = parse(text_input=prompt, sampling_parameters=sampling)
        assert 1 <= len(sequence.prompt_ids) <= LIMITS.max_prompt_tokens


def test_sequence_stops_at_the_end_token_and_at_the_limit() -> None:
    """The end token finishes with ``stop``, the token limit with ``length``."""
    stopped = parse(stream=True)
    assert not stopped.append(LIMITS.first_character_id)
    assert stopped.take_unsent() == ("a", 1)
    assert stopped.append(LIMITS.eos_id)
    assert (stopped.take_unsent(), stopped.finish_reason) == (("", 1), "stop")
    cut = parse(sampling_parameters=b'{"max_tokens": 1}')
    assert cut.append(LIMITS.first_character_id)
    assert cut.finish_reason == "length"


@pytest.mark.parametrize("bad", ["", "0", "-1", "many"])
def test_config_without_a_limit_stops_the_start(bad: str) -> None:
    """A limit that is missing or not positive is named when the model loads."""
    parameters = {**PARAMETERS, "tiercel_max_batch": {"string_value": bad}}
    with pytest.raises(ValueError, match="tiercel_max_batch"):
        serving.Limits.from_model(parameters, SMALL)


def test_config_beyond_the_positions_stops_the_start() -> None:
    """Prompt and output together must fit the model's positions."""
    parameters = {**PARAMETERS, "tiercel_max_output_tokens": {"string_value": "17"}}
    with pytest.raises(ValueError, match="the model has 64 positions"):
        serving.Limits.from_model(parameters, SMALL)


@pytest.mark.parametrize("tier", ["small", "medium", "large"])
def test_shipped_files_fit_together(tier: str) -> None:
    """Each tier ships weights, a config of its own shape and the trainer's vocabulary."""
    from trainer.reference_tiers.tokenizer import CharTokenizer

    folder = REFERENCE / tier / "1"
    assert CharTokenizer.load(folder) == CharTokenizer()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "opt"


def test_weights_are_small_enough_for_the_repository() -> None:
    """The three tiers' weights take at most 12 MB."""
    files = REFERENCE.glob("*/1/model.safetensors")
    sizes = [file.stat().st_size for file in files]
    assert len(sizes) == 3
    assert sum(sizes) <= 12_000_000
