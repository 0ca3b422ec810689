"""KServe messages to and from dataclasses: a request to what it asks for, a job to its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

from services.common.checks import Checks
from services.common.errors import (
    DomainError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
    status_of,
)
from services.router_inference.doors.kserve import parameters, tensors
from services.router_inference.doors.kserve.models import VERSION, EarlyError, Model, Models
from services.router_inference.doors.kserve.parameters import Wishes
from services.router_inference.job import Ask, Job, Outcome, StepDown

FINAL = "triton_final_response"
_US_PER_S = 1e6
_MS_PER_S = 1e3
_NO_REASON = "None"
"""Finish reason while an answer goes on, as the vLLM backend writes it."""
# Fields of the router's own messages, as they are called here.
_FIELDS = {
    "prompt": tensors.PROMPT,
    "task": parameters.TASK,
    "deadline": parameters.DEADLINE,
    "max_output_tokens": f"{tensors.SAMPLING}.{parameters.MAX_TOKENS}",
    "sampling.temperature": f"{tensors.SAMPLING}.{parameters.TEMPERATURE}",
    "sampling.seed": f"{tensors.SAMPLING}.{parameters.SEED}",
    "quality_floor": parameters.FLOOR,
    "slo_kind": parameters.SLO_KIND,
    "request_id": "id",
}


@dataclass(slots=True)
class Asked:
    """A request as it came.

    Attributes:
        ask: what it asks for.
        model: its model.
        id: the client's id, which comes back with every message.
        outputs: the outputs it wants.
        prefix: text that its answer begins with.
        wants_empty_final: whether the end may come as a message without outputs.
        deadline_field: the parameter that has the deadline.
    """

    ask: Ask
    model: Model
    id: str
    outputs: tuple[tensors.Output, ...]
    prefix: str
    wants_empty_final: bool
    deadline_field: str


def read(
    request: kserve.ModelInferRequest,
    models: Models,
    *,
    call_left_s: float | None,
    waited_s: float,
    metadata: Any,
    client: str,
) -> Asked:
    """Reads a request; what its values must be is checked later.

    Args:
        request: The request.
        models: The models there are.
        call_left_s: Time until its call ends by its own limit, seconds; None for no limit.
        waited_s: How long its call waited before it was seen here, seconds.
        metadata: The call's.
        client: Whose call it is.

    Raises:
        TensorError: It is not of the form that its model has.
        UnknownModelError: There is no such model.
        InvalidArgumentError: A value is of the wrong kind.
    """
    model = models.find(request.model_name, request.model_version)
    given = parameters.read_parameters(request)
    inputs = tensors.read_inputs(request)
    names = tensors.read_outputs(request)
    checks = Checks()
    wishes = Wishes(given, inputs.get(tensors.SAMPLING), checks)
    prompt = _prompt(inputs, checks)
    is_stream = bool(inputs.get(tensors.STREAM))
    is_excluded = bool(inputs.get(tensors.EXCLUDE, is_stream))
    checks.require(
        is_excluded or not is_stream, tensors.EXCLUDE, "must not be false when stream is true"
    )
    for name in tensors.UNSERVED:
        checks.require(not inputs.get(name), name, "is not served")
    checks.raise_if_any()
    ask = Ask(
        task=wishes.task,
        prompt=prompt,
        max_output_tokens=wishes.max_tokens,
        temperature=wishes.temperature,
        seed=wishes.seed,
        deadline_s=wishes.deadline_s,
        slo_kind=wishes.slo_kind,
        quality_floor=wishes.quality_floor,
        tier=model.tier,
        request_id=request.id,
        call_left_s=call_left_s,
        waited_s=waited_s,
        is_stream=is_stream,
        metadata=metadata or (),
        client=client,
    )
    outputs = tuple(
        output
        for output in tensors.OUTPUTS
        if (not output.asked_by or inputs.get(output.asked_by))
        and (names is None or output.name in names)
    )
    return Asked(
        ask,
        model,
        request.id,
        outputs,
        "" if is_excluded else prompt,
        bool(given.get(parameters.EMPTY_FINAL)),
        wishes.deadline_field,
    )


def _prompt(inputs: Mapping[str, bytes], checks: Checks) -> str:
    if not checks.require(tensors.PROMPT in inputs, tensors.PROMPT, "is missing"):
        return ""
    try:
        return inputs[tensors.PROMPT].decode()
    except UnicodeDecodeError as error:
        checks.require(False, tensors.PROMPT, f"is not UTF-8 at byte {error.start}")
        return ""


def in_words_of_the_door(error: DomainError, asked: Asked) -> DomainError:
    """Returns an error about a request with the fields named as this door's clients know them."""
    if not isinstance(error, InvalidArgumentError):
        return error
    named = []
    for field, problem in error.violations:
        name = field.removeprefix("spec.")
        name = asked.deadline_field if name == "deadline" else _FIELDS.get(name, name)
        named.append((name, problem))
    (field, problem), *more = named
    return InvalidArgumentError(field, problem, reason=error.reason, more=more)


# ---- answers ----


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

    __slots__ = ("_asked", "_message", "_prefix")

    def __init__(self, asked: Asked) -> None:
        """Takes what was asked."""
        self._asked = asked
        self._prefix = asked.prefix
        message = self._message = kserve.ModelStreamInferResponse()
        message.CopyFrom(_template(asked.outputs))
        response = message.infer_response
        response.model_name = asked.model.name
        response.id = asked.id

    def portion(
        self, text: str, token_count: int, finish_reason: str = _NO_REASON
    ) -> kserve.ModelStreamInferResponse:
        """Returns the message of a piece of the answer."""
        if self._prefix:
            text, self._prefix = self._prefix + text, ""
        raws = self._message.infer_response.raw_output_contents
        del raws[:]
        for output in self._asked.outputs:
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
        if last is None and self._asked.wants_empty_final:
            response = self._message.infer_response
            del response.outputs[:]
            del response.raw_output_contents[:]
        else:
            text, token_count = last or ("", 0)
            response = self.portion(
                text, token_count, job.finish_reason or _NO_REASON
            ).infer_response
        response.parameters[FINAL].bool_param = True
        _describe(job, response.parameters)
        return self._message

    def whole(self, job: Job, text: str) -> kserve.ModelInferResponse:
        """Returns the answer to ModelInfer."""
        response = self.end(job, (text, job.output_tokens)).infer_response
        del response.parameters[FINAL]
        return response


def _describe(job: Job, said: Any) -> None:
    """Writes what is known of an answer into parameters of a response."""
    choice = job.choice
    assert choice is not None  # who was answered was decided for
    said["tiercel_request_id"].string_param = job.request_id
    said["tiercel_tier"].string_param = job.tier
    said["tiercel_endpoint"].string_param = job.endpoint
    said["tiercel_policy"].string_param = choice.policy
    said["tiercel_policy_version"].string_param = choice.policy_version
    said["tiercel_on_time"].bool_param = job.outcome is Outcome.ON_TIME
    said["tiercel_quality"].double_param = job.quality
    said["tiercel_dispatch_us"].int64_param = _us(job.dispatch_s - job.arrival_s)
    if job.first_token_s:
        said["tiercel_first_token_us"].int64_param = _us(job.first_token_s - job.arrival_s)
    said["tiercel_total_us"].int64_param = _us(job.end_s - job.arrival_s)
    said["tiercel_early_us"].int64_param = _us(job.deadline_s - job.deadline_event_s)
    if job.step_down is not StepDown.NONE:
        said["tiercel_step_down_reason"].string_param = job.step_down.value
    if job.is_rescued:
        said["tiercel_rescued"].bool_param = True
    if job.retry_count:
        said["tiercel_retry_count"].int64_param = job.retry_count


def _us(span_s: float) -> int:
    return round(span_s * _US_PER_S)


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
