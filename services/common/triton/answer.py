"""Messages of Triton as pieces of an answer."""

from __future__ import annotations

from tritonclient.grpc import service_pb2 as kserve

from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.errors import bad_answer

_MOST_COUNT_BYTES = 8
_FINAL = "triton_final_response"
_FINISH_REASONS = {b"stop": "stop", b"length": "length"}


def chunk_of(response: kserve.ModelInferResponse, request_id: str, budget: Budget) -> TierChunk:
    """Converts one response; outputs may be missing or come in any order.

    Args:
        response: What came.
        request_id: The id that was sent with the request.
        budget: What the answer may still hold.

    Raises:
        TierUnavailableError: More came than was asked for, or not in the form asked for.
    """
    if response.id and response.id != request_id:
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
        token_count = min(1, budget.tokens) if text else 0
    budget.spend(len(text), token_count)
    is_final = _FINAL in response.parameters and response.parameters[_FINAL].bool_param
    # vLLM writes "null" or "None" while an answer goes on.
    reason = _FINISH_REASONS.get(finish_reason, "")
    return TierChunk(text.decode("utf-8", "replace"), token_count, is_final, reason)


def _text_of(raw: bytes) -> bytes:
    """Returns the one element of a BYTES tensor."""
    if raw and int.from_bytes(raw[:4], "little") != len(raw) - 4:
        raise bad_answer("a text whose length is not as stated")
    return raw[4:]
