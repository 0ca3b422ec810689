"""Answers of a tier: messages of Triton to pieces, within what was asked for."""

from __future__ import annotations

from typing import NamedTuple

from tritonclient.grpc import service_pb2 as kserve

from services.common.triton.errors import BAD_ANSWER, TierUnavailableError

_MOST_TOKEN_BYTES = 512
"""Longest text of one token, UTF-8; the longest in vocabularies of today have some 130."""
_SPARE_BYTES = 4096
_SPARE_MESSAGES = 16
_MOST_COUNT_BYTES = 8
_FINAL = "triton_final_response"
_FINISH_REASONS = {b"stop": "stop", b"length": "length"}


class TierChunk(NamedTuple):
    """One piece of an answer.

    Attributes:
        text: New text; may be empty.
        token_count: New tokens in it.
        is_final: Whether the answer is complete; exactly one chunk, the last, has it.
        finish_reason: `stop` or `length` on the last chunk when the tier says it, else empty.
    """

    text: str
    token_count: int
    is_final: bool
    finish_reason: str


class Budget:
    """What one answer may still hold; an endpoint that sends more is at fault."""

    __slots__ = ("_bytes", "_id", "_messages", "_tokens")

    def __init__(self, request_id: str, max_output_tokens: int) -> None:
        """Takes the id that was sent with the request and how many tokens were asked for."""
        self._id = request_id
        self._tokens = max_output_tokens
        self._bytes = max_output_tokens * _MOST_TOKEN_BYTES + _SPARE_BYTES
        self._messages = 2 * max_output_tokens + _SPARE_MESSAGES

    def chunk(self, response: kserve.ModelInferResponse) -> TierChunk:
        """Converts one response; outputs may be missing or come in any order.

        Raises:
            TierUnavailableError: More came than was asked for, or not in the form asked for.
        """
        if response.id and response.id != self._id:
            raise bad_answer("an answer to another request")
        text = finish_reason = b""
        token_count = -1
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
            if output.name == "text_output":
                text = _text_of(raw)
            elif output.name == "num_output_tokens":
                if len(raw) > _MOST_COUNT_BYTES:
                    raise bad_answer(f"a token count of {len(raw)} bytes")
                token_count = int.from_bytes(raw, "little")
            elif output.name == "finish_reason":
                finish_reason = _text_of(raw)
        if token_count < 0:
            # A tier that does not count: its bytes are bounded all the same.
            token_count = min(1, self._tokens) if text else 0
        self._messages -= 1
        self._bytes -= len(text)
        self._tokens -= token_count
        if self._tokens < 0:
            raise bad_answer(f"{-self._tokens} tokens more than was asked for")
        if self._bytes < 0 or self._messages < 0:
            raise bad_answer("longer than the tokens asked for can be")
        is_final = _FINAL in response.parameters and response.parameters[_FINAL].bool_param
        # vLLM writes "null" or "None" while an answer goes on.
        reason = _FINISH_REASONS.get(finish_reason, "")
        return TierChunk(text.decode("utf-8", "replace"), token_count, is_final, reason)


def _text_of(raw: bytes) -> bytes:
    """Returns the one element of a BYTES tensor."""
    if raw and int.from_bytes(raw[:4], "little") != len(raw) - 4:
        raise bad_answer("a text whose length is not as stated")
    return raw[4:]


def bad_answer(what: str) -> TierUnavailableError:
    """Returns the error of an endpoint that sent what no endpoint may send."""
    return TierUnavailableError(BAD_ANSWER, f"the endpoint sent {what}")
