"""Requests are read once for each form; what differs between two of one form is never mixed up."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.router_inference.doors.kserve import asking
from services.router_inference.doors.kserve.asking import Asked, Reader
from services.router_inference.doors.kserve.models import TensorError, UnknownModelError
from tests.kserve_requests import infer_request
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario


def made() -> Reader:
    """Returns a reader for the models of a router."""
    return Reader(make_rig().core.kserve._models)


def read_message(reader: Reader, request: Any) -> Asked:
    """Reads a request."""
    return reader.read(request, call_left_s=None, waited_s=0.0, metadata=(), client="")


def read(reader: Reader, **fields: Any) -> Asked:
    """Makes a request and reads it."""
    return read_message(reader, infer_request(**fields))


@scenario
async def test_requests_of_one_form_keep_what_is_their_own() -> None:
    """Id, prompt, flags and sampling are each request's; the form is read once."""
    reader = made()
    for number in range(3):
        asked = read(
            reader,
            prompt=str(number).encode(),
            request_id=f"id-{number}",
            sampling=b'{"max_tokens": %d}' % (number + 1),
            stream=number > 0,
            exclude_input_in_output=True,
            return_finish_reason=number == 2,
        )
        assert (asked.id, asked.ask.request_id) == (f"id-{number}",) * 2
        assert asked.ask.prompt == str(number)
        assert asked.ask.max_output_tokens == number + 1
        assert asked.ask.is_stream is (number > 0)
        names = [output.name for output in asked.outputs]
        assert names == ["text_output", "finish_reason"][: 1 + (number == 2)]
    assert len(reader._forms) == 1
    assert len(reader._samplings) == 3


@scenario
async def test_what_makes_a_form_tells_requests_apart() -> None:
    """Another model, parameter, input, output or number of raw contents is another form."""
    reader = made()
    asked = [
        read(reader),
        read(reader, model="small"),
        read(reader, parameters={"tiercel_deadline_ms": 100}),
        read(reader, parameters={"tiercel_deadline_ms": 200}),
        read(reader, outputs=("text_output",)),
        read(reader, stream=False),
    ]
    assert len(reader._forms) == len(asked)
    assert [each.model.name for each in asked[:2]] == ["tiercel", "small"]
    assert [each.ask.deadline_s for each in asked[2:4]] == [0.1, 0.2]
    more = infer_request()
    more.raw_input_contents.append(b"")
    with pytest.raises(TensorError, match="2 entries for 1 inputs"):
        read_message(reader, more)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"model": "nope"}, 0),
        ({"parameters": {"tiercel_nope": 1}}, 0),
        ({"sampling": b"{"}, 1),
        ({"prompt": b"\xff"}, 1),
    ],
)
def test_nothing_wrong_is_kept(fields: dict[str, Any], kept: int) -> None:
    """A mistake is found again; a form that was right is kept, whatever the values were."""

    @scenario
    async def check() -> None:
        reader = made()
        for _ in range(2):
            with pytest.raises((InvalidArgumentError, UnknownModelError)):
                read(reader, **fields)
        assert len(reader._forms) == kept
        assert not reader._samplings

    check()


@scenario
async def test_a_request_keeps_its_id_for_the_answer_to_a_mistake() -> None:
    """Whatever is found first."""
    request = infer_request("nope", request_id="7")
    with pytest.raises(UnknownModelError):
        read_message(made(), request)
    assert (request.id, request.model_name) == ("7", "nope")


@scenario
async def test_what_is_kept_is_bounded() -> None:
    """Clients that change their parameters with each request fill no memory."""
    reader = made()
    for number in range(asking._MOST_KEPT + 10):
        read(reader, parameters={"tiercel_deadline_ms": number + 1})
    assert len(reader._forms) == 10
    read(reader, parameters={"foo": "x" * 5_000})
    read(reader, sampling=b'{"max_tokens": 5}' + b" " * 5_000)
    assert len(reader._forms) == 11
    assert not reader._samplings


@scenario
async def test_typed_requests_are_read_as_raw_ones() -> None:
    """They are not kept: their texts are part of them."""
    reader = made()
    for prompt in (b"a", b"b"):
        asked = read(reader, prompt=prompt, typed=True, sampling=b'{"max_tokens": 3}')
        assert (asked.ask.prompt, asked.ask.max_output_tokens) == (prompt.decode(), 3)
    assert not reader._forms
    with pytest.raises(InvalidArgumentError, match="text_input: is missing"):
        read(reader, prompt=None, typed=True, stream=True)
