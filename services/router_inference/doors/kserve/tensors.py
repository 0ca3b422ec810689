"""The tensors of Triton's vLLM backend: what comes in is checked as Triton checks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tritonclient.grpc import service_pb2 as kserve

from services.common.errors import InvalidArgumentError
from services.router_inference.doors.kserve.models import TensorError

PROMPT = "text_input"
STREAM = "stream"
SAMPLING = "sampling_parameters"
EXCLUDE = "exclude_input_in_output"
INPUTS = {
    PROMPT: "BYTES",
    STREAM: "BOOL",
    SAMPLING: "BYTES",
    EXCLUDE: "BOOL",
    "return_finish_reason": "BOOL",
    "return_num_output_tokens": "BOOL",
}
"""Inputs and their datatypes; each has one element."""
UNSERVED = (
    "return_num_input_tokens",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_token_ids",
)
"""Inputs of the vLLM backend that may be there, but not be true: no tier is asked for these."""
_KNOWN = INPUTS | dict.fromkeys(UNSERVED, "BOOL")
_FIELDS = {"BYTES": "bytes_contents", "BOOL": "bool_contents"}
_LENGTH_BYTES = 4


class Output(NamedTuple):
    """One output: its name, its datatype, and the input that asks for it; empty for always."""

    name: str
    datatype: str
    asked_by: str


TEXT = Output("text_output", "BYTES", "")
FINISH_REASON = Output("finish_reason", "BYTES", "return_finish_reason")
TOKEN_COUNT = Output("num_output_tokens", "UINT32", "return_num_output_tokens")
OUTPUTS = (TEXT, FINISH_REASON, TOKEN_COUNT)


def read_forms(request: kserve.ModelInferRequest, raw_count: int) -> dict[str, str]:
    """Returns the names of the inputs in their order, each with its datatype.

    Args:
        request: The request.
        raw_count: How many tensors' bytes are beside the inputs; 0 means that they are inside.

    Raises:
        TensorError: An input is not known, not of the form it must have, or given in two ways.
    """
    found: dict[str, str] = {}
    model, inputs = request.model_name, request.inputs
    if not inputs:
        raise _wrong(
            request,
            PROMPT,
            f"expected number of inputs between 1 and {len(INPUTS)} but got 0 inputs for model "
            f"'{model}'. Got input(s) [], but missing required input(s) ['{PROMPT}']. Please "
            "provide all required input(s).",
        )
    if raw_count > len(inputs):
        text = f"raw_input_contents has {raw_count} entries for {len(inputs)} inputs"
        raise TensorError("raw_input_contents", text)
    for index, tensor in enumerate(inputs):
        name = tensor.name
        datatype = _KNOWN.get(name)
        if datatype is None:
            raise TensorError(name, f"unexpected inference input '{name}' for model '{model}'")
        if "shared_memory_region" in tensor.parameters:
            raise TensorError(name, f"shared memory is not served, asked for by input '{name}'")
        if name in found:
            raise _wrong(request, name, f"input '{name}' already exists in request")
        if tensor.datatype != datatype:
            raise _wrong(
                request,
                name,
                f"inference input '{name}' data-type is '{tensor.datatype}', but model '{model}' "
                f"expects '{datatype}'",
            )
        if len(tensor.shape) != 1 or tensor.shape[0] != 1:
            got = ",".join(map(str, tensor.shape[:8]))
            text = f"unexpected shape for input '{name}' for model '{model}'. Expected [1], got"
            raise _wrong(request, name, f"{text} [{got}]. ")
        if raw_count:
            _check_raw(tensor, model, has_bytes=index < raw_count)
        found[name] = datatype
    return found


def _check_raw(tensor: Any, model: str, *, has_bytes: bool) -> None:
    name = tensor.name
    if not has_bytes:
        text = f"unable to find data for input tensor '{name}' for model '{model}' in request."
        raise TensorError(name, text)
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise TensorError(
            name,
            "contents field must not be specified when using raw_input_contents for "
            f"'{name}' for model '{model}'",
        )


def raw_elements(
    request: kserve.ModelInferRequest, forms: Mapping[str, str], raws: Sequence[bytes]
) -> dict[str, bytes]:
    """Returns each input's one element from the bytes beside the inputs; a flag is empty for false.

    Raises:
        TensorError: Bytes are not those of one element.
        InvalidArgumentError: A text is cut short.
    """
    found = {}
    for (name, datatype), raw in zip(forms.items(), raws, strict=True):
        if datatype == "BOOL":
            if len(raw) != 1:
                raise _wrong(
                    request,
                    name,
                    f"input byte size mismatch for input '{name}' for model "
                    f"'{request.model_name}'. Expected 1, got {len(raw)}",
                )
            found[name] = b"" if raw == b"\0" else raw
        elif len(raw) - _LENGTH_BYTES == int.from_bytes(raw[:_LENGTH_BYTES], "little"):
            found[name] = raw[_LENGTH_BYTES:]
        else:
            raise _wrong_text(request, name, raw)
    return found


def _wrong_text(request: kserve.ModelInferRequest, name: str, raw: bytes) -> InvalidArgumentError:
    """Returns what is wrong with bytes that are not one text."""
    model = request.model_name
    if not raw:
        text = f"expected 1 string elements for inference input '{name}' for model '{model}', got 0"
        return _wrong(request, name, text)
    if len(raw) < _LENGTH_BYTES:
        text = f"incomplete string length indicator for inference input '{name}' for model"
        return _wrong(
            request,
            name,
            f"{text} '{model}', expecting 4 bytes but only {len(raw)} bytes available",
        )
    size, got = int.from_bytes(raw[:_LENGTH_BYTES], "little"), len(raw) - _LENGTH_BYTES
    if size > got:
        # Triton leaves this one to the model.
        text = f"incomplete string data, expecting {size} bytes but only {got} are available"
        return InvalidArgumentError(name, text)
    text = f"unexpected bytes after the 1 string element of inference input '{name}' for model"
    return _wrong(request, name, f"{text} '{model}': {got - size}")


def typed_elements(request: kserve.ModelInferRequest, forms: Mapping[str, str]) -> dict[str, bytes]:
    """Returns each input's one element from inside it; a flag is empty for false.

    Raises:
        TensorError: There is none, there are several, or of another type.
    """
    found, model = {}, request.model_name
    for tensor, (name, datatype) in zip(request.inputs, forms.items(), strict=True):
        wanted = _FIELDS[datatype]
        for field, _ in tensor.contents.ListFields():
            if field.name != wanted:
                text = f"unexpected explicit tensor data for input tensor '{name}' for model"
                raise TensorError(
                    name, f"{text} '{model}' in '{field.name}', expected datatype '{datatype}'"
                )
        values = getattr(tensor.contents, wanted)
        if len(values) != 1:
            text = f"unexpected number of elements {len(values)} for inference input '{name}' for"
            raise _wrong(request, name, f"{text} model '{model}', expecting 1")
        if datatype == "BOOL":
            found[name] = b"\1" if values[0] else b""
        else:
            found[name] = values[0]
    return found


def read_outputs(request: kserve.ModelInferRequest) -> frozenset[str] | None:
    """Returns the names of the outputs that are asked for; None for all.

    Raises:
        TensorError: There is no such output, or not in the form asked for.
    """
    if not request.outputs:
        return None
    known = {output.name for output in OUTPUTS}
    names = set()
    for output in request.outputs:
        if output.name not in known:
            text = f"unexpected inference output '{output.name}' for model '{request.model_name}'"
            raise TensorError(output.name, text)
        for key in output.parameters:
            if key == "classification" or key.startswith("shared_memory_"):
                text = f"'{key}' is not served, asked for by output '{output.name}'"
                raise TensorError(output.name, text)
        names.add(output.name)
    return frozenset(names)


def text_tensor(text: str) -> bytes:
    """Returns the bytes of a BYTES tensor of one element."""
    data = text.encode()
    return len(data).to_bytes(_LENGTH_BYTES, "little") + data


def _wrong(request: kserve.ModelInferRequest, field: str, text: str) -> TensorError:
    return TensorError(field, f"[request id: {request.id[:64] or '<id_unknown>'}] {text}")
