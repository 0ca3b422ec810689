"""A KServe request to what it asks for.

Clients send the same request again and again, but for its id and its tensors' bytes. So what is
read of all else is kept, by its bytes: model, parameters, names, datatypes and shapes are checked
once for each kind of request, not for each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

from services.common.checks import Checks
from services.common.errors import DomainError, InvalidArgumentError
from services.router_inference.doors.kserve import parameters, tensors
from services.router_inference.doors.kserve.models import Model, Models
from services.router_inference.doors.kserve.parameters import Sampling, Wishes
from services.router_inference.job import Ask

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
    "token_interval": parameters.TOKEN_INTERVAL,
    "priority": parameters.PRIORITY,
    "request_id": "id",
    "conversation_id": parameters.CONVERSATION,
}
_MOST_KEPT, _LONGEST_KEPT_BYTES = 1_024, 4_096


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


class _Form:
    """What requests have in common that differ in their ids and their tensors' bytes alone."""

    __slots__ = (
        "_names", "_outputs", "forms", "model", "sampling", "sequence", "unserved",
        "wants_empty_final", "wishes",
    )  # fmt: skip

    def __init__(
        self, request: kserve.ModelInferRequest, models: Models, raw_count: int, checks: Checks
    ) -> None:
        """Reads a request; values of the wrong kind are noted in `checks`.

        Raises:
            TensorError: It is not of the form that its model has.
            UnknownModelError: There is no such model.
        """
        self.model = models.find(request.model_name, request.model_version)
        given = parameters.read_parameters(request)
        self.forms = tensors.read_forms(request, raw_count)
        self.unserved = [name for name in tensors.UNSERVED if name in self.forms]
        self._names = tensors.read_outputs(request)
        # Where no input asks for outputs, they are those of every request of the form.
        self._outputs: tuple[tensors.Output, ...] | None = None
        if not any(output.asked_by in self.forms for output in tensors.OUTPUTS):
            self._outputs = _outputs(self._names, {})
        self.wants_empty_final = bool(given.get(parameters.EMPTY_FINAL))
        self.sequence = parameters.sequence_of(given)
        self.wishes = Wishes(given, checks)
        self.sampling = Sampling(None, 0.0, None)
        if tensors.SAMPLING not in self.forms:
            self.sampling = parameters.read_sampling(given, checks)

    def outputs(self, inputs: Mapping[str, bytes]) -> tuple[tensors.Output, ...]:
        """Returns the outputs that a request with such inputs gets."""
        return _outputs(self._names, inputs) if self._outputs is None else self._outputs


class Reader:
    """Reads requests; what their values must be is checked later."""

    def __init__(self, models: Models) -> None:
        """Takes the models there are."""
        self._models = models
        self._forms: dict[bytes, _Form] = {}
        self._samplings: dict[bytes, Sampling] = {}

    def read(
        self,
        request: kserve.ModelInferRequest,
        *,
        call_left_s: float | None,
        waited_s: float,
        metadata: Any,
        client: str,
    ) -> Asked:
        """Returns what a request asks for; its raw contents are taken out of it.

        Args:
            request: The request.
            call_left_s: Time until its call ends by its own limit, seconds; None for no limit.
            waited_s: How long its call waited before it was seen here, seconds.
            metadata: The call's.
            client: Whose call it is.

        Raises:
            TensorError: It is not of the form that its model has.
            UnknownModelError: There is no such model.
            InvalidArgumentError: A value is of the wrong kind.
        """
        checks, request_id, raws = Checks(), request.id, request.raw_input_contents[:]
        conversation = parameters.take_conversation(request, checks)
        if raws:
            form = self._form(request, raws, checks)
            inputs = tensors.raw_elements(request, form.forms, raws)
        else:
            form = _Form(request, self._models, 0, checks)
            inputs = tensors.typed_elements(request, form.forms)
        wishes, sampling = form.wishes, form.sampling
        if tensors.SAMPLING in inputs:
            sampling = self._sampling(inputs[tensors.SAMPLING], checks)
        prompt = _prompt(inputs, checks)
        is_stream = bool(inputs.get(tensors.STREAM))
        is_excluded = bool(inputs.get(tensors.EXCLUDE, is_stream))
        if is_stream:
            what = f"is true, but model {form.model.name} answers in one piece"
            checks.require(form.model.is_decoupled, tensors.STREAM, what)
            what = "must not be false when stream is true"
            checks.require(is_excluded, tensors.EXCLUDE, what)
        for name in form.unserved:
            checks.require(not inputs.get(name), name, "is not served")
        checks.raise_if_any()
        ask = Ask(
            task=wishes.task,
            prompt=prompt,
            max_output_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
            deadline_s=wishes.deadline_s,
            slo_kind=wishes.slo_kind,
            token_interval_s=wishes.token_interval_s,
            quality_floor=wishes.quality_floor,
            tier=form.model.tier,
            request_id=request_id,
            conversation_id=conversation or form.sequence,
            call_left_s=call_left_s,
            waited_s=waited_s,
            is_stream=is_stream,
            metadata=metadata or (),
            client=client,
            priority=wishes.priority,
        )
        return Asked(
            ask,
            form.model,
            request_id,
            form.outputs(inputs),
            "" if is_excluded else prompt,
            form.wants_empty_final,
            wishes.deadline_field,
        )

    def _form(self, request: kserve.ModelInferRequest, raws: list[bytes], checks: Checks) -> _Form:
        """Returns the form of a request with raw contents."""
        request_id = request.id
        del request.raw_input_contents[:]
        request.id = ""
        key = request.SerializeToString() + len(raws).to_bytes(4, "little")
        request.id = request_id
        form = self._forms.get(key)
        if form is None:
            form = _Form(request, self._models, len(raws), checks)
            checks.raise_if_any()
            _keep(self._forms, key, form)
        return form

    def _sampling(self, text: bytes, checks: Checks) -> Sampling:
        sampling = self._samplings.get(text)
        if sampling is None:
            sampling = parameters.read_sampling_json(text, checks)
            checks.raise_if_any()
            _keep(self._samplings, text, sampling)
        return sampling


def _keep(kept: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(key) <= _LONGEST_KEPT_BYTES:
        if len(kept) >= _MOST_KEPT:
            kept.clear()
        kept[key] = value


def _prompt(inputs: Mapping[str, bytes], checks: Checks) -> str:
    data = inputs.get(tensors.PROMPT)
    if data is None:
        checks.require(False, tensors.PROMPT, "is missing")
        return ""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        checks.require(False, tensors.PROMPT, f"is not UTF-8 at byte {error.start}")
        return ""


def _outputs(
    names: frozenset[str] | None, inputs: Mapping[str, bytes]
) -> tuple[tensors.Output, ...]:
    """Returns the outputs that were asked for and will be made."""
    return tuple(
        output
        for output in tensors.OUTPUTS
        if (not output.asked_by or inputs.get(output.asked_by))
        and (names is None or output.name in names)
    )


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
