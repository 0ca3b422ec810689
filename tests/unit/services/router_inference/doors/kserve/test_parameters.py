"""Parameters of requests: Triton's own, Tiercel's, and sampling."""

from __future__ import annotations

from typing import Any

import pytest

from router.types import Priority, SloKind
from services.common.checks import Checks
from services.common.errors import InvalidArgumentError
from services.router_inference.doors.kserve.models import TensorError
from services.router_inference.doors.kserve.parameters import (
    Sampling,
    Wishes,
    read_parameters,
    read_sampling,
    read_sampling_json,
)
from tests.kserve_requests import infer_request


def read(
    parameters: dict[str, Any] | None = None, sampling: bytes | None = None
) -> tuple[Wishes, Sampling]:
    """Returns what a request asks for.

    Raises:
        InvalidArgumentError: Something in it is wrong.
    """
    checks = Checks()
    found = read_parameters(infer_request(parameters=parameters))
    wishes = Wishes(found, checks)
    if sampling is None:
        result = read_sampling(found, checks)
    else:
        result = read_sampling_json(sampling, checks)
    checks.raise_if_any()
    return wishes, result


def test_a_request_says_task_deadline_floor_and_kind() -> None:
    """Numbers may come as text, from clients that can send no fractions."""
    found, _ = read(
        {
            "tiercel_task": "piqa",
            "tiercel_deadline_ms": 250,
            "tiercel_quality_floor": "0.75",
            "tiercel_slo_kind": "per_token",
            "tiercel_token_interval_ms": "62.5",
        }
    )
    assert (found.task, found.deadline_s, found.quality_floor) == ("piqa", 0.25, 0.75)
    assert (found.slo_kind, found.token_interval_s) == (SloKind.PER_TOKEN, 0.0625)


@pytest.mark.parametrize(
    ("parameters", "deadline_s", "field"),
    [
        ({"timeout": 500_000}, 0.5, "timeout"),
        ({"timeout": 0}, None, "tiercel_deadline_ms"),
        ({"timeout": 500_000, "tiercel_deadline_ms": 250}, 0.25, "tiercel_deadline_ms"),
        ({"timeout": 100_000, "tiercel_deadline_ms": 250}, 0.1, "timeout"),
        ({"timeout": -5}, -5e-6, "timeout"),
        ({"tiercel_deadline_ms": 0.5}, 0.0005, "tiercel_deadline_ms"),
    ],
)
def test_tritons_timeout_is_a_deadline(
    parameters: dict[str, Any], deadline_s: float | None, field: str
) -> None:
    """Of two the earlier one counts; 0 is none. What is out of range is refused later, by name."""
    found, _ = read(parameters)
    assert (found.deadline_s, found.deadline_field) == (deadline_s, field)


@pytest.mark.parametrize(
    "sampling", [b'{"max_tokens": 7, "temperature": 0.5, "seed": 3, "top_p": 1.0, "stop": null}',
                 b'{"max_tokens": "7", "temperature": "0.5", "seed": "3", "n": 1}',
                 b'{"max_tokens": 7.0, "temperature": 0.5, "seed": 3}'],
)  # fmt: skip
def test_sampling_is_read_from_its_tensor(sampling: bytes) -> None:
    """Numbers may be texts, as vLLM takes them; what changes nothing may be there."""
    assert read({"max_tokens": 99}, sampling)[1] == (7, 0.5, 3)


def test_sampling_is_read_from_the_parameters_where_there_is_no_tensor() -> None:
    """As the vLLM backend does."""
    _, found = read({"max_tokens": 7, "temperature": 0.5, "seed": 3, "foo": "bar"})
    assert found == (7, 0.5, 3)
    assert read()[1] == (None, 0.0, None)


@pytest.mark.parametrize(
    ("parameters", "sampling", "text"),
    [
        ({"tiercel_tsak": "x"}, None, "tiercel_tsak: is not known (limit: tiercel_task, "),
        ({"tiercel_task": 1}, None, "tiercel_task: is no text"),
        ({"tiercel_deadline_ms": "soon"}, None, "tiercel_deadline_ms: is no number"),
        ({"tiercel_deadline_ms": True}, None, "tiercel_deadline_ms: is no number"),
        ({"tiercel_deadline_ms": "9" * 65}, None, "tiercel_deadline_ms: is no number"),
        ({"tiercel_slo_kind": "x"}, None, "tiercel_slo_kind: is not known (limit: complete_answer"),
        ({"tiercel_slo_kind": 1}, None, "tiercel_slo_kind: is not known"),
        ({"priority": -1}, None, "priority: is -1 (limit: 0 or more)"),
        ({}, b"{", "sampling_parameters: is no JSON object"),
        ({}, b"[]", "sampling_parameters: is no JSON object"),
        ({}, b"\xff", "sampling_parameters: is no JSON object"),
        ({}, b"[" * 10_000, "sampling_parameters: is no JSON object"),
        ({}, b" " * 20_000 + b"{}", "sampling_parameters: has 20002 bytes (limit: 16384 bytes)"),
        ({}, b'{"top_p": 0.9}', "sampling_parameters.top_p: is not served (limit: max_tokens"),
        ({}, b'{"foo": 1}', "sampling_parameters.foo: is not served"),
        ({}, b'{"max_tokens": true}', "sampling_parameters.max_tokens: is no number"),
        ({}, b'{"max_tokens": 1.5}', "sampling_parameters.max_tokens: is no whole number"),
        ({}, b'{"max_tokens": 1e999}', "sampling_parameters.max_tokens: is no whole number"),
        ({}, b'{"temperature": []}', "sampling_parameters.temperature: is no number"),
        (
            {},
            b'{"temperature": 1' + b"0" * 400 + b"}",
            "sampling_parameters.temperature: is no number",
        ),
    ],
)
def test_what_is_wrong_is_named(
    parameters: dict[str, Any], sampling: bytes | None, text: str
) -> None:
    """Field and limit, whatever the mistake."""
    with pytest.raises(InvalidArgumentError) as caught:
        read(parameters, sampling)
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"timeout": "5"}, "invalid value type for 'timeout' parameter, expected int64_param."),
        ({"priority": "1"}, "expected int64_param or uint64_param."),
        ({"triton_enable_empty_final_response": "x"}, "expected bool_param."),
        ({"triton_foo": "x"}, "parameter keys starting with 'triton_' are reserved"),
    ],
)
def test_tritons_own_parameters_have_tritons_types(parameters: dict[str, Any], text: str) -> None:
    """Refused in Triton's words."""
    with pytest.raises(TensorError) as caught:
        read_parameters(infer_request(parameters=parameters))
    assert text in caught.value.message


def test_a_parameter_without_a_value_is_refused() -> None:
    """Whatever its name is."""
    request = infer_request()
    request.parameters["foo"].SetInParent()
    with pytest.raises(TensorError, match="invalid value type for 'foo' parameter"):
        read_parameters(request)


def test_what_changes_nothing_here_is_taken() -> None:
    """Sequences, as Triton takes them for a model that knows none."""
    found = read_parameters(
        infer_request(
            parameters={
                "sequence_id": "a", "sequence_start": True, "foo": 1.5,
            }
        )
    )  # fmt: skip
    assert set(found) == {"sequence_id", "sequence_start", "foo"}


@pytest.mark.parametrize(
    ("number", "priority"),
    [(0, "NORMAL"), (1, "HIGH"), (2, "NORMAL"), (3, "LOW"), (2**64 - 1, "LOW")],
)
def test_tritons_numbers_are_classes(number: int, priority: str) -> None:
    """0 is the default, 1 the highest, and the larger the lower."""
    request = infer_request(parameters={"priority": ("uint64_param", number)})
    checks = Checks()
    assert Wishes(read_parameters(request), checks).priority is Priority[priority]
    checks.raise_if_any()
