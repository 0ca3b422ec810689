"""Messages of Triton as pieces of an answer.

A router reads one for every few tokens. From one message to the next, and from one answer to the
next, hardly anything changes but the request's id and the tensors' bytes, which come last. So what
comes before them is compared with what came before in other messages; only a message that begins
as none did is read whole.
"""

from __future__ import annotations

from typing import NamedTuple

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as kserve

from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.errors import bad_answer
from services.common.triton.errors import error_of_text

_MOST_COUNT_BYTES = 8
_FINAL = "triton_final_response"
_FINISH_REASONS = {b"stop": "stop", b"length": "length"}
# How protobuf writes `infer_response` of a message, and `raw_output_contents` of that: a tag, the
# length in sevens of bits, lowest first, then the bytes.
_RESPONSE_TAG, _RAW_TAG = 0x12, 0x32
_RAW_TAG_BYTES = bytes((_RAW_TAG,))
_MORE, _SEVEN = 0x80, 0x7F
_MOST_NUMBER_BYTES = 5
_NOWHERE = -1
_MOST_FORMS, _LONGEST_FORM_BYTES = 4, 1_024


class _Form(NamedTuple):
    """What messages have in common that differ in their ids and their tensors' bytes alone.

    Attributes:
        before: the bytes of the response up to the request's id.
        after: those from there to the tensors' bytes.
        raw_count: how many tensors' bytes there are.
        text_at: which of them is the text; `_NOWHERE` for none.
        count_at: which of them is the token count.
        reason_at: which of them is the finish reason.
        is_final: whether the answer is complete with it.
    """

    before: bytes
    after: bytes
    raw_count: int
    text_at: int
    count_at: int
    reason_at: int
    is_final: bool


Forms = list[_Form]
"""Those of the last answers of one model; empty at first."""


class AnswerReader:
    """Reads the messages of one answer."""

    __slots__ = ("_budget", "_form", "_forms", "_head", "_id")

    def __init__(self, request_id: str, budget: Budget, forms: Forms) -> None:
        """Takes the id that was sent with the request, and what the answer may hold.

        What it learns of the model's messages it adds to `forms`.
        """
        self._id = request_id.encode()
        self._budget = budget
        self._forms = forms
        self._form: _Form | None = None
        self._head = b""

    def read(self, payload: bytes) -> TierChunk:
        """Returns one message; outputs may be missing or come in any order.

        Raises:
            TierError: The tier failed, more came than was asked for, or not in the form asked for.
        """
        form = self._form
        raws = None if form is None else _raws(payload, self._head, form.raw_count)
        if form is None or raws is None:
            form, raws = self._find(payload)
        text, token_count, reason = b"", _NOWHERE, ""
        if form.text_at >= 0:
            text = _text_of(raws[form.text_at])
        if form.count_at >= 0:
            raw = raws[form.count_at]
            if len(raw) > _MOST_COUNT_BYTES:
                raise bad_answer(f"a token count of {len(raw)} bytes")
            token_count = int.from_bytes(raw, "little")
        if form.reason_at >= 0:
            # vLLM writes "null" or "None" while an answer goes on.
            reason = _FINISH_REASONS.get(_text_of(raws[form.reason_at]), "")
        budget = self._budget
        if token_count < 0:
            # A tier that does not count: its bytes are bounded all the same.
            token_count = min(1, budget.tokens) if text else 0
        budget.spend(len(text), token_count)
        return TierChunk(text.decode("utf-8", "replace"), token_count, form.is_final, reason)

    def _find(self, payload: bytes) -> tuple[_Form, list[bytes]]:
        """Returns the form of a message that has not that of the one before, and its bytes."""
        for form in self._forms:
            head = form.before + self._id + form.after
            raws = _raws(payload, head, form.raw_count)
            if raws is not None:
                self._form, self._head = form, head
                return form, raws
        form, raws = self._read_whole(payload)
        if form.before and len(form.before) + len(form.after) <= _LONGEST_FORM_BYTES:
            if len(self._forms) >= _MOST_FORMS:
                del self._forms[0]
            self._forms.append(form)
        return form, raws

    def _read_whole(self, payload: bytes) -> tuple[_Form, list[bytes]]:
        """Returns form and bytes of any message; the form is of use if it says what is `before`."""
        request_id = self._id.decode()
        try:
            message = kserve.ModelStreamInferResponse.FromString(payload)
        except DecodeError:
            raise bad_answer("bytes that are no message") from None
        if message.error_message:
            raise error_of_text(message.error_message, request_id)
        response = message.infer_response
        if response.id and response.id != request_id:
            raise bad_answer("an answer to another request")
        raws: list[bytes] = response.raw_output_contents[:]
        at = {
            output.name: index
            for index, (output, _) in enumerate(zip(response.outputs, raws, strict=False))
        }
        before, found, after = _head(payload, raws).partition(self._id)
        form = _Form(
            before if found else b"",
            after,
            len(raws),
            at.get("text_output", _NOWHERE),
            at.get("num_output_tokens", _NOWHERE),
            at.get("finish_reason", _NOWHERE),
            _FINAL in response.parameters and response.parameters[_FINAL].bool_param,
        )
        return form, raws


def _raws(payload: bytes, head: bytes, raw_count: int) -> list[bytes] | None:
    """Returns the tensors' bytes of a message that has nothing before them but `head`, else None.

    Whatever is not as expected (more fields, bytes that are cut short) is left to protobuf.
    """
    start, end = _response_start(payload), len(payload)
    if not start or not payload.startswith(head, start):
        return None
    raws, at = [], start + len(head)
    while at + 1 < end and payload[at] == _RAW_TAG:
        size, at = payload[at + 1], at + 2
        if size > _SEVEN:
            size, at = _number(payload, at - 1)
        raws.append(payload[at : at + size])
        at += size
    return raws if at == end and len(raws) == raw_count else None


def _response_start(payload: bytes) -> int:
    """Returns where the response begins that is all of a message; 0 if there is more, or less."""
    end = len(payload)
    if end < 3 or payload[0] != _RESPONSE_TAG:
        return 0
    size, start = payload[1], 2
    if size > _SEVEN:
        if payload[2] <= _SEVEN:  # most messages
            size, start = size - _MORE + (payload[2] << 7), 3
        else:
            size, start = _number(payload, 1)
    return start if start + size == end else 0


def _head(payload: bytes, raws: list[bytes]) -> bytes:
    """Returns the bytes of a response before its tensors' bytes; empty if these are not its end."""
    tail = b"".join(_RAW_TAG_BYTES + _number_bytes(len(raw)) + raw for raw in raws)
    start, end = _response_start(payload), len(payload) - len(tail)
    return payload[start:end] if 0 < start <= end and payload.endswith(tail) else b""


def _number(payload: bytes, at: int) -> tuple[int, int]:
    """Reads a number; returns it and where it ends, or beyond the payload if it does not end."""
    value = shift = 0
    for place in range(at, min(at + _MOST_NUMBER_BYTES, len(payload))):
        byte = payload[place]
        value |= (byte & _SEVEN) << shift
        if not byte & _MORE:
            return value, place + 1
        shift += 7
    return 0, len(payload) + 1


def _number_bytes(value: int) -> bytes:
    found = bytearray()
    while value > _SEVEN:
        found.append(value & _SEVEN | _MORE)
        value >>= 7
    found.append(value)
    return bytes(found)


def _text_of(raw: bytes) -> bytes:
    """Returns the one element of a BYTES tensor."""
    text = raw[4:]
    if raw and int.from_bytes(raw[:4], "little") != len(text):
        raise bad_answer("a text whose length is not as stated")
    return text
