"""Inputs and outputs: read in either form, and refused in Triton's words."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.router_inference.doors.kserve.models import TensorError
from services.router_inference.doors.kserve.tensors import (
    raw_elements,
    read_forms,
    read_outputs,
    typed_elements,
)
from tests.kserve_requests import add_input, element, infer_request


def read_inputs(request: Any) -> dict[str, bytes]:
    """Returns each input's element, in whichever form."""
    raws = list(request.raw_input_contents)
    forms = read_forms(request, len(raws))
    return raw_elements(request, forms, raws) if raws else typed_elements(request, forms)


@pytest.mark.parametrize("typed", [False, True])
def test_inputs_are_read_raw_and_typed(typed: bool) -> None:
    """Both forms say the same."""
    request = infer_request(sampling=b"{}", typed=typed, stream=True, return_finish_reason=False)
    assert read_inputs(request) == {
        "text_input": b"hello",
        "sampling_parameters": b"{}",
        "stream": b"\1",
        "return_finish_reason": b"",
    }


def wrong(**fields: Any) -> Any:
    """Returns a request whose first input is replaced."""
    request = infer_request()
    del request.inputs[:], request.raw_input_contents[:]
    add_input(
        request, **{"name": "text_input", "datatype": "BYTES", "raw": element(b"a"), **fields}
    )
    return request


def changed(change: Any, **options: Any) -> Any:
    """Returns a good request after a change."""
    request = infer_request(**options)
    change(request)
    return request


SHARED = "shared_memory_region"


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (wrong(name="nope"), "unexpected inference input 'nope' for model 'tiercel'"),
        (wrong(datatype="INT32"), "data-type is 'INT32', but model 'tiercel' expects 'BYTES'"),
        (wrong(shape=(2,)), "Expected [1], got [2]"),
        (wrong(shape=()), "Expected [1], got []"),
        (wrong(shape=(1, 1)), "Expected [1], got [1,1]"),
        (wrong(shape=(2**62,) * 1000), "unexpected shape"),
        (wrong(raw=b""), "expected 1 string elements"),
        (wrong(raw=b"ab"), "expecting 4 bytes but only 2 bytes available"),
        (wrong(raw=element(b"a") + b"xx"), "unexpected bytes after the 1 string element"),
        (wrong(name="stream", datatype="BOOL", raw=b"\0\1"), "Expected 1, got 2"),
        (infer_request(prompt=None), "missing required input(s) ['text_input']"),
        (changed(lambda r: r.raw_input_contents.append(b"")), "2 entries for 1 inputs"),
        (
            changed(lambda r: r.raw_input_contents.pop(), stream=True),
            "unable to find data for input tensor 'stream'",
        ),
        (
            changed(lambda r: r.inputs[0].contents.bytes_contents.append(b"a")),
            "contents field must not be specified when using raw_input_contents",
        ),
        (
            changed(lambda r: r.inputs[0].contents.bytes_contents.append(b"a"), typed=True),
            "unexpected number of elements 2",
        ),
        (
            changed(lambda r: r.inputs[0].contents.int_contents.append(1), typed=True),
            "unexpected explicit tensor data for input tensor 'text_input'",
        ),
        (
            changed(lambda r: add_input(r, "text_input", "BYTES", element(b"b"))),
            "input 'text_input' already exists in request",
        ),
        (
            changed(lambda r: setattr(r.inputs[0].parameters[SHARED], "string_param", "x")),
            "shared memory is not served, asked for by input 'text_input'",
        ),
    ],
)
def test_a_wrong_input_is_refused_by_name(request_: Any, text: str) -> None:
    """Each in Triton's words, or as close."""
    with pytest.raises(TensorError) as caught:
        read_inputs(request_)
    assert text in caught.value.message


def test_a_text_that_is_cut_short_is_the_models_to_refuse() -> None:
    """So it is in Triton, where it changes the form of the error."""
    with pytest.raises(InvalidArgumentError, match="expecting 5 bytes but only 2") as caught:
        read_inputs(wrong(raw=b"\5\0\0\0ab"))
    assert not isinstance(caught.value, TensorError)


def test_outputs_are_checked() -> None:
    """None asked for means all; a name that does not exist and a form that is not served fail."""
    assert read_outputs(infer_request()) is None
    assert read_outputs(infer_request(outputs=("text_output",))) == frozenset({"text_output"})
    with pytest.raises(TensorError, match="unexpected inference output 'nope'"):
        read_outputs(infer_request(outputs=("nope",)))
    request = infer_request(outputs=("text_output",))
    request.outputs[0].parameters["classification"].int64_param = 1
    with pytest.raises(TensorError, match="'classification' is not served"):
        read_outputs(request)
