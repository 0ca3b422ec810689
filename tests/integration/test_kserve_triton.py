"""The KServe door beside the real Triton behind it: the same requests, the same status and fields.

What differs on purpose is listed in `STRICTER` and `MORE`, each with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.fakes.router_process import running_router
from tests.integration.conftest import PacedTriton
from tests.integration.test_router_paced import toml_of
from tests.kserve_requests import add_input, element, infer_request, said

pytestmark = pytest.mark.triton

CALL_S = 60.0
STARTS = 3
BY_STATUS = (("triton_grpc_error", "true"),)
EMPTY_FINAL = {"triton_enable_empty_final_response": True}
THREE = b'{"max_tokens": 3}'
Build = Callable[[str], Any]


@dataclass(frozen=True)
class Case:
    """One call: its method, its request messages by the model's name, its metadata."""

    method: str
    requests: Sequence[Build]
    metadata: tuple[tuple[str, str], ...] = ()


def asked(**fields: Any) -> Build:
    """Returns what builds a request, by default a good one for three tokens."""
    return lambda model: infer_request(
        **{
            "model": model,
            "sampling": THREE,
            "request_id": "x",
            "exclude_input_in_output": True,
            **fields,
        }
    )


def stream(*requests: Build, metadata: tuple[tuple[str, str], ...] = ()) -> Case:
    """Returns a call of ModelStreamInfer."""
    return Case("ModelStreamInfer", requests, metadata)


def one(**fields: Any) -> Case:
    """Returns a stream of one request."""
    return stream(asked(**fields))


def changed(change: Callable[[Any], Any], **fields: Any) -> Case:
    """Returns a stream of one request that is changed before it is sent."""

    def build(model: str) -> Any:
        request = asked(**fields)(model)
        change(request)
        return request

    return stream(build)


def first(name: str = "text_input", **other: Any) -> Case:
    """Returns a stream of one request whose prompt's tensor is another one."""

    def change(request: Any) -> None:
        del request.inputs[0], request.raw_input_contents[0]
        good = {"name": name, "datatype": "BYTES", "raw": element(b"a")}
        add_input(request, **{**good, **other})

    return changed(change)


def about(method: str, **fields: Any) -> Case:
    """Returns a call that asks about a model."""
    kind = getattr(kserve, f"{method}Request")
    return Case(method, [lambda model: kind(**{"name": model, **fields})])


def plain(method: str, **fields: Any) -> Case:
    """Returns a call that names no model."""
    return Case(method, [lambda _: getattr(kserve, f"{method}Request")(**fields)])


def set_parameter(request: Any, index: int, key: str) -> None:
    """Gives an input a parameter."""
    request.inputs[index].parameters[key].string_param = "r"


GOOD: dict[str, Case] = {
    "live": plain("ServerLive"),
    "ready": plain("ServerReady"),
    "model ready": about("ModelReady"),
    "model ready, version 1": about("ModelReady", version="1"),
    "model ready, version 01": about("ModelReady", version="01"),
    "model ready, version 1x": about("ModelReady", version="1x"),
    "model ready, version 7": about("ModelReady", version="7"),
    "model ready, version 0": about("ModelReady", version="0"),
    "unknown model ready": plain("ModelReady", name="nope"),
    "one answer": one(),
    "streamed": one(stream=True),
    "typed": one(stream=True, typed=True),
    "empty end": one(stream=True, parameters=EMPTY_FINAL),
    "empty end of one answer": one(parameters=EMPTY_FINAL),
    "no id": one(request_id=""),
    "version 1": one(version="1"),
    "counts and reason": one(return_finish_reason=True, return_num_output_tokens=True),
    "counts and reason, streamed": one(
        stream=True, return_finish_reason=True, return_num_output_tokens=True
    ),
    "one output of two": one(outputs=("text_output",), return_finish_reason=True),
    "an output that is not made": one(outputs=("text_output", "finish_reason")),
    "the prompt before the answer": one(exclude_input_in_output=False),
    "stream is 2": changed(
        lambda r: add_input(r, "stream", "BOOL", b"\2"), return_finish_reason=True
    ),
    "max_tokens as text": one(sampling=b'{"max_tokens": "3"}'),
    "timeout": one(parameters={"timeout": 50_000_000}),
    "priority": one(parameters={"priority": ("uint64_param", 1)}),
    "priority, signed": one(parameters={"priority": 1}),
    "a sequence": one(parameters={"sequence_id": 7, "sequence_start": True}),
    "a sequence by name": one(parameters={"sequence_id": "u"}),
    "a parameter of their own": one(parameters={"foo": "bar", "more": 1.5}),
    "two at once": stream(asked(stream=True, request_id="1"), asked(stream=True, request_id="2")),
    "nothing": stream(),
    "by status": stream(asked(), metadata=BY_STATUS),
}
BAD: dict[str, Case] = {
    "model ready, version x": about("ModelReady", version="x"),
    "model ready, version -1": about("ModelReady", version="-1"),
    "model ready, version too large": about("ModelReady", version="9" * 20),
    "metadata of version 7": about("ModelMetadata", version="7"),
    "metadata of version x": about("ModelMetadata", version="x"),
    "metadata of an unknown model": plain("ModelMetadata", name="nope"),
    "metadata of no model": plain("ModelMetadata"),
    "configuration of an unknown model": plain("ModelConfig", name="nope"),
    "configuration of version 7": about("ModelConfig", version="7"),
    "statistics of an unknown model": plain("ModelStatistics", name="nope"),
    "statistics of version 7": about("ModelStatistics", version="7"),
    "statistics of version x": about("ModelStatistics", version="x"),
    "index of a repository": plain("RepositoryIndex", repository_name="foo"),
    "infer an unknown model": Case("ModelInfer", [asked(model="nope")]),
    "infer no model": Case("ModelInfer", [asked(model="")]),
    "infer version 7": Case("ModelInfer", [asked(version="7")]),
    "infer version x": Case("ModelInfer", [asked(version="x")]),
    "unknown model": one(model="nope"),
    "no model": one(model=""),
    "version 7": one(version="7"),
    "version x": one(version="x"),
    "version -1": one(version="-1"),
    "no prompt": one(prompt=None),
    "no inputs": changed(lambda r: r.ClearField("inputs") or r.ClearField("raw_input_contents")),
    "an unknown input": first(name="nope"),
    "an unknown datatype": first(datatype="FOO"),
    "a wrong datatype": first(datatype="INT32", raw=b"\0" * 4),
    "a wrong datatype of a flag": changed(lambda r: add_input(r, "stream", "INT32", b"\0" * 4)),
    "shape 2": first(shape=(2,)),
    "shape 2 with two texts": first(shape=(2,), raw=element(b"a", b"b")),
    "shape 1 1": first(shape=(1, 1)),
    "no shape": first(shape=()),
    "shape 0": first(shape=(0,), raw=b""),
    "shape -1": first(shape=(-1,)),
    "a shape of a terabyte": first(shape=(2**40,)),
    "a text cut short": first(raw=b"\5\0\0\0ab"),
    "a text too long": first(raw=element(b"a") + b"xx"),
    "half a length": first(raw=b"ab"),
    "no bytes": first(raw=b""),
    "a flag of 2 bytes": changed(lambda r: add_input(r, "stream", "BOOL", b"\0\1")),
    "a flag of no byte": changed(lambda r: add_input(r, "stream", "BOOL", b"")),
    "an input twice": changed(lambda r: add_input(r, "text_input", "BYTES", element(b"b"))),
    "too few raw contents": changed(lambda r: r.raw_input_contents.pop()),
    "raw and typed": changed(lambda r: r.inputs[0].contents.bytes_contents.append(b"a")),
    "typed, two texts": changed(
        lambda r: r.inputs[0].contents.bytes_contents.append(b"a"), typed=True
    ),
    "typed, no text": changed(lambda r: r.inputs[0].contents.Clear(), typed=True),
    "an unknown output": one(outputs=("nope",)),
    "an input in shared memory": changed(lambda r: set_parameter(r, 0, "shared_memory_region")),
    "sampling that is no JSON": one(sampling=b"{"),
    "sampling that is a list": one(sampling=b"[]"),
    "no tokens": one(sampling=b'{"max_tokens": 0}'),
    "a timeout that is text": one(parameters={"timeout": "5"}),
    "a priority that is text": one(parameters={"priority": "1"}),
    "an empty end that is text": one(parameters={"triton_enable_empty_final_response": "x"}),
    "a parameter of Triton's": one(parameters={"triton_foo": "bar"}),
    "a parameter without a value": changed(lambda r: r.parameters["foo"].SetInParent()),
    "a bad one, then a good one": stream(asked(prompt=None, request_id="1"), asked(request_id="2")),
    "by status, a bad value": stream(asked(sampling=b"{"), metadata=BY_STATUS),
    "by status, no prompt": stream(asked(prompt=None), metadata=BY_STATUS),
    "by status, a bad form": stream(
        asked(outputs=("nope",), request_id="1"), asked(request_id="2"), metadata=BY_STATUS
    ),
    "by status, an unknown model": stream(asked(model="nope"), metadata=BY_STATUS),
    "nearly by status": stream(asked(prompt=None), metadata=(("triton_grpc_error", "True"),)),
}
STRICTER: dict[str, tuple[Case, str]] = {
    "no text in the prompt": (one(prompt=b""), "text_input: is empty"),
    "a prompt that is not UTF-8": (one(prompt=b"\xff"), "text_input: is not UTF-8"),
    "more raw contents than inputs": (
        changed(lambda r: r.raw_input_contents.append(b"")),
        "raw_input_contents has 4 entries for 3 inputs",
    ),
    "a negative timeout": (one(parameters={"timeout": -5}), "timeout: is -5e-06 s"),
    "sampling that no tier is asked for": (
        one(sampling=b'{"foo": 1}'), "sampling_parameters.foo: is not served",
    ),
    "the prompt before a streamed answer": (
        one(stream=True, exclude_input_in_output=False),
        "exclude_input_in_output: must not be false when stream is true",
    ),
    "a count of the prompt's tokens": (
        one(return_num_input_tokens=True), "return_num_input_tokens: is not served",
    ),
}  # fmt: skip
"""What this Triton's paced tiers take without a word, and the door refuses."""


@dataclass(frozen=True)
class Seen:
    """What a client saw of a call.

    Attributes:
        status: the call's status.
        messages: of each request by its id, what its messages had in common and how it ended.
    """

    status: str
    messages: Any


async def seen(stub: Any, case: Case, model: str) -> Seen:
    """Makes a call and returns what came."""
    requests = [build(model) for build in case.requests]
    method = getattr(stub, case.method)
    answers: list[Any] = []
    try:
        if case.method == "ModelStreamInfer":
            call = method(iter(requests), metadata=case.metadata or None, timeout=CALL_S)
            answers.extend([answer async for answer in call])
            return Seen("OK", _by_id(answers, model))
        answer = await method(requests[0], timeout=CALL_S)
        return Seen("OK", str(answer))
    except grpc.aio.AioRpcError as error:
        return Seen(error.code().name, "")


def _by_id(answers: Sequence[Any], model: str) -> dict[str, Any]:
    """Returns what clients can see of each request's messages.

    Not how many pieces an answer came in, which is a matter of time, and no text of errors.
    """
    found: dict[str, Any] = {}
    for answer in answers:
        response = answer.infer_response
        entry = found.setdefault(
            response.id, {"forms": set(), "texts": b"", "final": [], "ends": []}
        )
        told = said(response)
        if answer.error_message:
            entry["ends"].append("error")
        is_named = {"": "", model: "model"}[response.model_name]
        entry["forms"].add((bool(answer.error_message), is_named, response.model_version))
        entry["final"].append(told.get("triton_final_response"))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            entry["forms"].add((output.name, output.datatype, tuple(output.shape)))
            assert not output.HasField("contents")
            if output.name == "text_output":
                entry["texts"] += raw[4:]
    for entry in found.values():
        *before, last = entry["final"]
        entry["final"] = (set(before) <= {False}, last)
    return found


class OwnTriton:
    """A Triton that is asked here alone, and started again where a question ended it.

    Version 2.51 sometimes does: a stream whose errors end it is cancelled after its end, and then
    the server aborts itself. One that other tests share would fail all of them.
    """

    def __init__(self, server: TritonServer) -> None:
        """Starts nothing yet."""
        self._server = server

    async def seen(self, case: Case, model: str) -> Seen:
        """Asks, again where the server did not live to see the end."""
        for _ in range(STARTS):
            if not self._server.running:
                await self._server.stop_async()
                await self._server.start_async()
            async with grpc.aio.insecure_channel(self._server.grpc_address) as channel:
                found = await seen(kserve_grpc.GRPCInferenceServiceStub(channel), case, model)
            if self._server.running:
                return found
        raise AssertionError(f"Triton ended {STARTS} times: {self._server.exit_reason()}")


@dataclass(frozen=True)
class Both:
    """The router's stub, both Tritons, and what a tier's model is called there."""

    router: Any
    triton: Any
    own: OwnTriton
    tritons_name: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(
    paced_triton: PacedTriton, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Both]:
    """A router before the paced Triton, and a stub of each."""
    folder = tmp_path_factory.mktemp("router")
    toml = toml_of(paced_triton, 'default_task = "piqa"\nmax_output_tokens = 2048')
    toml = toml.replace("default_deadline_s = 3.0", "default_deadline_s = 60.0")
    [models] = [entry["models"] for entry in paced_triton.endpoints[:1]]
    [served] = paced_triton.repository.servers
    server = TritonServer(
        TritonServerConfig(repository=served.path, log_path=folder / "triton.log")
    )
    async with (
        running_router(folder, toml) as router,
        grpc.aio.insecure_channel(paced_triton.address) as channel,
    ):
        try:
            yield Both(
                kserve_grpc.GRPCInferenceServiceStub(router.channel),
                kserve_grpc.GRPCInferenceServiceStub(channel),
                OwnTriton(server),
                models["large"],
            )
        finally:
            await server.stop_async()


@pytest.mark.parametrize("name", [*GOOD, *BAD])
@pytest.mark.asyncio(loop_scope="module")
async def test_the_router_answers_as_triton_does(both: Both, name: str) -> None:
    """Status, form of the messages, ids, flags, outputs, text."""
    case = {**GOOD, **BAD}[name]
    ours = await seen(both.router, case, "large")
    theirs = await both.own.seen(case, both.tritons_name)
    if "the prompt before" in name:
        # The paced tier puts a space between, vLLM and the router do not.
        theirs.messages["x"]["texts"] = theirs.messages["x"]["texts"].replace(b"hello ", b"hello")
    assert ours == theirs
    is_bad = ours.status != "OK" or "error" in str(ours.messages)
    assert is_bad is (name in BAD)


@pytest.mark.parametrize("name", STRICTER)
@pytest.mark.asyncio(loop_scope="module")
async def test_where_the_router_is_stricter_it_says_why(both: Both, name: str) -> None:
    """A list, so that it cannot grow unseen: Triton takes each of these."""
    case, text = STRICTER[name]
    theirs = await both.own.seen(case, both.tritons_name)
    assert "error" not in str(theirs.messages)
    [build] = case.requests
    call = both.router.ModelStreamInfer(iter([build("large")]), timeout=CALL_S)
    [answer] = [answer async for answer in call]
    assert text in answer.error_message


@pytest.mark.asyncio(loop_scope="module")
async def test_where_the_router_does_more(both: Both) -> None:
    """It answers ModelInfer for models that may stream, and outlives what ends this Triton."""
    case = Case("ModelInfer", [asked()])
    assert (await seen(both.router, case, "large")).status == "OK"
    assert (await seen(both.triton, case, both.tritons_name)).status == "UNIMPLEMENTED"
    request = asked(outputs=("text_output",))("large")
    # Triton 2.51 dies of this one.
    request.outputs[0].parameters["classification"].int64_param = 1
    call = both.router.ModelStreamInfer(iter([request]), timeout=CALL_S)
    [answer] = [answer async for answer in call]
    assert "'classification' is not served" in answer.error_message


@pytest.mark.asyncio(loop_scope="module")
async def test_the_interface_is_that_of_the_tiers(both: Both) -> None:
    """Every input and output the door names is one of the tier's model, of the same type."""
    ours = await both.router.ModelMetadata(kserve.ModelMetadataRequest(name="large"))
    theirs = await both.triton.ModelMetadata(kserve.ModelMetadataRequest(name=both.tritons_name))
    for field in ("inputs", "outputs"):
        known = {each.name: each.datatype for each in getattr(theirs, field)}
        named = {each.name: each.datatype for each in getattr(ours, field)}
        assert named.items() <= known.items()
    configs = await asyncio.gather(
        both.router.ModelConfig(kserve.ModelConfigRequest(name="large")),
        both.triton.ModelConfig(kserve.ModelConfigRequest(name=both.tritons_name)),
    )
    assert all(each.config.model_transaction_policy.decoupled for each in configs)
