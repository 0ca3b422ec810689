"""KServe requests as clients of Triton send them, good ones and wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as kserve

FLAGS = ("stream", "exclude_input_in_output", "return_finish_reason", "return_num_output_tokens")


def element(*texts: bytes) -> bytes:
    """Returns the bytes of a BYTES tensor."""
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def infer_request(
    model: str = "tiercel",
    prompt: bytes | None = b"hello",
    *,
    sampling: bytes | None = None,
    typed: bool = False,
    parameters: Mapping[str, Any] | None = None,
    outputs: tuple[str, ...] = (),
    version: str = "",
    request_id: str = "",
    **flags: bool,
) -> Any:
    """Returns a request; a parameter is a value, or a pair of its kind and its value."""
    request = kserve.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    for name, text in (("text_input", prompt), ("sampling_parameters", sampling)):
        if text is not None:
            add_input(request, name, "BYTES", element(text), typed=("bytes_contents", text, typed))
    for name, value in flags.items():
        add_input(request, name, "BOOL", bytes([value]), typed=("bool_contents", value, typed))
    for name in outputs:
        request.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        kind, plain = value if isinstance(value, tuple) else (_KINDS[type(value)], value)
        setattr(request.parameters[key], kind, plain)
    return request


_KINDS = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}


def add_input(
    request: Any,
    name: str,
    datatype: str,
    raw: bytes,
    *,
    shape: tuple[int, ...] = (1,),
    typed: tuple[str, Any, bool] = ("", None, False),
) -> None:
    """Adds an input: its bytes beside it, or inside it where `typed` ends with True."""
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    field, value, is_typed = typed
    if is_typed:
        getattr(tensor.contents, field).append(value)
    else:
        request.raw_input_contents.append(raw)


def said(response: Any) -> dict[str, Any]:
    """Returns the parameters of a response."""
    return {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in response.parameters.items()
    }


def outputs_of(response: Any) -> dict[str, bytes | int]:
    """Returns the outputs of a response: the one text of each, or the one number."""
    found: dict[str, bytes | int] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert list(output.shape) == [1]
        if output.datatype == "BYTES":
            assert int.from_bytes(raw[:4], "little") == len(raw) - 4
            found[output.name] = raw[4:]
        else:
            assert output.datatype == "UINT32"
            assert len(raw) == 4
            found[output.name] = int.from_bytes(raw, "little")
    return found
