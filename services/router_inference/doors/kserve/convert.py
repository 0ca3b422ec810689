"""A job to its answer as KServe messages, and errors to theirs."""

from __future__ import annotations

from functools import cache
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

from router.seat import Stay
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


@cache
def _template(outputs: tuple[tensors.Output, ...]) -> kserve.ModelStreamInferResponse:
    """Returns a message with some outputs that is not the last; to be copied, never changed."""
    message = kserve.ModelStreamInferResponse()
    response = message.infer_response
    response.model_version = VERSION
    response.parameters[FINAL].bool_param = False
    for output in outputs:
        response.outputs.add(name=output.name, datatype=output.datatype, shape=[1])
    return message


class Reply:
    """Makes the messages of one answer; each is good until the next is made."""

    __slots__ = ("_asked", "_message", "_prefix", "_raws", "_response")

    def __init__(self, asked: Asked) -> None:
        """Takes what was asked."""
        self._asked = asked
        self._prefix = asked.prefix
        message = self._message = kserve.ModelStreamInferResponse()
        message.CopyFrom(_template(asked.outputs))
        response = self._response = message.infer_response
        response.model_name = asked.model.name
        response.id = asked.id
        self._raws = response.raw_output_contents

    def portion(
        self, text: str, token_count: int, finish_reason: str = _NO_REASON
    ) -> kserve.ModelStreamInferResponse:
        """Returns the message of a piece of the answer."""
        if self._prefix:
            text, self._prefix = self._prefix + text, ""
        raws, outputs = self._raws, self._asked.outputs
        del raws[:]
        if outputs == _TEXT_ALONE:
            raws.append(tensors.text_tensor(text))
            return self._message
        for output in outputs:
            if output is tensors.TEXT:
                raws.append(tensors.text_tensor(text))
            elif output is tensors.TOKEN_COUNT:
                raws.append(token_count.to_bytes(4, "little"))
            else:
                raws.append(tensors.text_tensor(finish_reason))
        return self._message

    def end(self, job: Job, last: tuple[str, int] | None) -> kserve.ModelStreamInferResponse:
        """Returns the last message, with what is known of the answer.

        Args:
            job: The request, answered.
            last: Text and token count that were not sent yet; None for none.
        """
        response = self._response
        if last is None and self._asked.wants_empty_final:
            del response.outputs[:]
            del self._raws[:]
        else:
            text, token_count = last or ("", 0)
            self.portion(text, token_count, job.finish_reason or _NO_REASON)
        said = response.parameters
        said[FINAL].bool_param = True
        _describe(job, said)
        return self._message

    def whole(self, job: Job, text: str) -> kserve.ModelInferResponse:
        """Returns the answer to ModelInfer."""
        response = self._response
        self.portion(text, job.output_tokens, job.finish_reason or _NO_REASON)
        said = response.parameters
        del said[FINAL]
        _describe(job, said)
        return response


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
