"""A job to its answer as KServe messages, and errors to theirs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

from router.seat import Stay
from services.common import wire
from services.common.errors import (
    DomainError,
    ResourceExhaustedError,
    UnavailableError,
    status_of,
)
from services.router_inference.doors.kserve import tensors
from services.router_inference.doors.kserve.asking import Asked
from services.router_inference.doors.kserve.models import VERSION, EarlyError
from services.router_inference.job import Job, Outcome, StepDown
from services.router_inference.records.spent import Spent, time_spent

FINAL = "triton_final_response"
_US_PER_S = 1e6
_MS_PER_S = 1e3
_SPENT = tuple(f"tiercel_{part.removesuffix('_s')}_us" for part in Spent._fields)
_TEXT_ALONE = (tensors.TEXT,)
"""The outputs of most requests."""
_NO_REASON = "None"
"""Finish reason while an answer goes on, as the vLLM backend writes it."""


_RESPONSE, _ID, _RAW = wire.tag(2), wire.tag(3), wire.tag(6)
"""Tags of a message's `infer_response`, of its `id`, and of its `raw_output_contents`."""
_MOST_HEADS = 1_024


@lru_cache(_MOST_HEADS)
def _head(model: str, outputs: tuple[tensors.Output, ...], *, goes_on: bool) -> bytes:
    """Returns what responses with some outputs have in common, but for what is said at the end."""
    response = kserve.ModelInferResponse(model_name=model, model_version=VERSION)
    if goes_on:
        response.parameters[FINAL].bool_param = False
    for output in outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=[1])
    return bytes(response.SerializeToString())


class Reply:
    """Makes the messages of one answer, as bytes: they differ in a few of them."""

    __slots__ = ("_asked", "_going_on", "_id", "_prefix")

    def __init__(self, asked: Asked) -> None:
        """Takes what was asked."""
        self._asked = asked
        self._prefix = asked.prefix
        self._id = wire.field(_ID, asked.id.encode()) if asked.id else b""
        self._going_on = self._id + _head(asked.model.name, asked.outputs, goes_on=True)

    def portion(self, text: str, token_count: int) -> bytes:
        """Returns the message of a piece of the answer."""
        raws = self._raws(text, token_count, _NO_REASON)
        return wire.field(_RESPONSE, self._going_on + raws)

    def end(self, job: Job, last: tuple[str, int] | None) -> bytes:
        """Returns the last message, with what is known of the answer.

        Args:
            job: The request, answered.
            last: Text and token count that were not sent yet; None for none.
        """
        asked, raws = self._asked, b""
        outputs = asked.outputs
        if last is None and asked.wants_empty_final:
            outputs = ()
        else:
            text, token_count = last or ("", 0)
            raws = self._raws(text, token_count, job.finish_reason or _NO_REASON)
        head = _head(asked.model.name, outputs, goes_on=False)
        return wire.field(_RESPONSE, self._id + head + _described(job, is_final=True) + raws)

    def whole(self, job: Job, text: str) -> bytes:
        """Returns the answer to ModelInfer."""
        raws = self._raws(text, job.output_tokens, job.finish_reason or _NO_REASON)
        head = _head(self._asked.model.name, self._asked.outputs, goes_on=False)
        return self._id + head + _described(job, is_final=False) + raws

    def _raws(self, text: str, token_count: int, finish_reason: str) -> bytes:
        """Returns the tensors' bytes of a message, as fields of it."""
        if self._prefix:
            text, self._prefix = self._prefix + text, ""
        outputs = self._asked.outputs
        if outputs == _TEXT_ALONE:
            return wire.field(_RAW, tensors.text_tensor(text))
        raws = []
        for output in outputs:
            if output is tensors.TEXT:
                raws.append(tensors.text_tensor(text))
            elif output is tensors.TOKEN_COUNT:
                raws.append(token_count.to_bytes(4, "little"))
            else:
                raws.append(tensors.text_tensor(finish_reason))
        return b"".join([wire.field(_RAW, raw) for raw in raws])


def _described(job: Job, *, is_final: bool) -> bytes:
    """Returns a response that only says what is known of an answer."""
    response = kserve.ModelInferResponse()
    if is_final:
        response.parameters[FINAL].bool_param = True
    _describe(job, response.parameters)
    return bytes(response.SerializeToString())


def _describe(job: Job, said: Any) -> None:
    """Writes what is known of an answer into parameters of a response."""
    choice, target, arrival_s = job.choice, job.target, job.arrival_s
    assert choice is not None  # who was answered was decided for
    assert target is not None
    said["tiercel_request_id"].string_param = job.request_id
    said["tiercel_tier"].string_param = target.tier
    said["tiercel_endpoint"].string_param = target.endpoint
    said["tiercel_policy"].string_param = choice.policy
    said["tiercel_policy_version"].string_param = choice.policy_version
    said["tiercel_on_time"].bool_param = job.outcome is Outcome.ON_TIME
    said["tiercel_quality"].double_param = job.quality
    said["tiercel_dispatch_us"].int64_param = round((job.dispatch_s - arrival_s) * _US_PER_S)
    if job.first_token_s:
        first_s = job.first_token_s - arrival_s
        said["tiercel_first_token_us"].int64_param = round(first_s * _US_PER_S)
    said["tiercel_total_us"].int64_param = round((job.end_s - arrival_s) * _US_PER_S)
    early_s = job.deadline_s - job.deadline_event_s
    said["tiercel_early_us"].int64_param = round(early_s * _US_PER_S)
    for name, taken_s in zip(_SPENT, time_spent(job), strict=True):
        said[name].int64_param = round(taken_s * _US_PER_S)
    if job.step_down is not StepDown.NONE:
        said["tiercel_step_down_reason"].string_param = job.step_down.value
    if job.stay is not Stay.NONE:
        said["tiercel_conversation_stay"].string_param = job.stay.name.lower()
    if job.is_rescued:
        said["tiercel_rescued"].bool_param = True
    if job.retry_count:
        said["tiercel_retry_count"].int64_param = job.retry_count


# ---- errors ----


def error_message(
    error: DomainError, request: kserve.ModelInferRequest
) -> kserve.ModelStreamInferResponse:
    """Returns the message of a stream that says why a request has no (complete) answer.

    Triton says the model's name, and that this was the last message, only where its model failed.
    The parameters tell programs what a status and its details tell them elsewhere.
    """
    status = status_of(error)
    message = kserve.ModelStreamInferResponse(error_message=status.rich.message)
    response = message.infer_response
    response.id = request.id
    if isinstance(error, EarlyError):
        return message
    response.model_name = request.model_name
    said = response.parameters
    said[FINAL].bool_param = True
    said["tiercel_status"].string_param = status.code.name
    said["tiercel_reason"].string_param = status.reason
    if isinstance(error, ResourceExhaustedError | UnavailableError) and error.retry_after_s:
        said["tiercel_retry_after_ms"].int64_param = round(error.retry_after_s * _MS_PER_S)
    return message
