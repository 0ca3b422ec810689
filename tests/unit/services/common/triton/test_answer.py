"""Pieces of an answer, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as kserve

from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.errors import TierError, TierUnavailableError
from services.common.triton import answer
from services.common.triton.answer import AnswerReader, Forms

OUTPUTS = ("text_output", "num_output_tokens", "finish_reason", "other")


def message(
    request_id: str = "mine",
    outputs: tuple[tuple[str, bytes], ...] = (),
    *,
    is_final: bool = False,
    model: str = "small",
) -> bytes:
    """Returns a message as a tier writes it."""
    found = kserve.ModelStreamInferResponse()
    response = found.infer_response
    response.model_name, response.id = model, request_id
    response.parameters["triton_final_response"].bool_param = is_final
    for name, raw in outputs:
        response.outputs.add(name=name, datatype="BYTES", shape=[1])
        response.raw_output_contents.append(raw)
    return bytes(found.SerializeToString())


def text(value: str) -> tuple[str, bytes]:
    """Returns the output of a text."""
    raw = value.encode()
    return "text_output", len(raw).to_bytes(4, "little") + raw


def reader(request_id: str = "mine", forms: Forms | None = None) -> AnswerReader:
    """Returns a reader of an answer that may hold anything."""
    return AnswerReader(request_id, Budget(2**80), [] if forms is None else forms)


def test_an_answer_to_another_request_is_refused() -> None:
    """Nobody gets what an endpoint still had to say on the request before."""
    forms: Forms = []
    assert reader("yours", forms).read(message("yours", (text("a"),))).text == "a"
    for known in ([], forms):
        with pytest.raises(TierUnavailableError, match="another request"):
            reader("mine", known).read(message("yours", (text("a"),)))


def test_an_answer_without_an_id_is_taken() -> None:
    """A server that tells no id is understood."""
    payload = kserve.ModelStreamInferResponse().SerializeToString()
    assert reader().read(payload) == TierChunk("", 0, False, "")


def test_only_the_first_message_of_a_form_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this answer and in the next ones of the model, whatever their ids and texts."""
    whole: list[bytes] = []
    read_whole = AnswerReader._read_whole

    def noted(self: AnswerReader, payload: bytes) -> Any:
        whole.append(payload)
        return read_whole(self, payload)

    monkeypatch.setattr(AnswerReader, "_read_whole", noted)
    forms: Forms = []
    for number in range(3):
        name = f"id-{number}"
        pieces = [message(name, (text("word " * n),)) for n in (0, 1, 9, 400, 4)]
        pieces.append(message(name, (), is_final=True))
        found = reader(name, forms)
        chunks = [found.read(piece) for piece in pieces]
        assert [len(chunk.text) for chunk in chunks] == [0, 5, 45, 2000, 20, 0]
        assert [chunk.is_final for chunk in chunks] == [False] * 5 + [True]
        assert len(whole) == 2


def test_forms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that invents one for every message fills no memory."""
    forms: Forms = []
    found = reader(forms=forms)
    for number in range(20):
        found.read(message(model=f"m{number}", outputs=(text("a"),)))
    found.read(message(model="m" * 100_000, outputs=(text("a"),)))
    assert len(forms) == answer._MOST_FORMS
    assert sum(len(form.before) + len(form.after) for form in forms) < 1_000


def outcome(found: AnswerReader, payload: bytes) -> TierChunk | str:
    """Returns what a reader makes of a message, or the error it raises."""
    try:
        return found.read(payload)
    except TierError as error:
        return str(error)


raws = st.one_of(st.text(max_size=200).map(lambda value: text(value)[1]), st.binary(max_size=12))
pieces = st.builds(
    message,
    st.sampled_from(("mine", "mine", "yours", "")),
    st.lists(st.tuples(st.sampled_from(OUTPUTS), raws), max_size=4, unique_by=lambda o: o[0]).map(
        tuple
    ),
    is_final=st.booleans(),
    model=st.sampled_from(("small", "mine")),
)


@given(st.lists(pieces, min_size=1, max_size=8), st.data())
def test_what_is_known_of_forms_changes_nothing(messages: list[bytes], data: st.DataObject) -> None:
    """Messages good and broken mean what they mean to a reader that has seen none before."""
    forms: Forms = []
    found = reader(forms=forms)
    for payload in messages:
        if data.draw(st.booleans()) and payload:
            at = data.draw(st.integers(0, len(payload) - 1))
            kept = data.draw(st.sampled_from((1, 0)))  # a byte changed, or one left out
            change = bytes([data.draw(st.integers(0, 255))]) * kept
            payload = payload[:at] + change + payload[at + 1 :]
        assert outcome(found, payload) == outcome(reader(), payload)
