"""A Triton endpoint in process: the part of KServe v2 that the router uses, from a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from tests.fakes.ports import free_port


@dataclass
class Script:
    """How a model behaves.

    Attributes:
        tokens: Pieces of the answer.
        step_s: Time before each piece, seconds.
        first_s: Time before the first piece beside that, seconds.
        rest_s: Time between the first piece and the second beside that, seconds.
        error: gRPC status to end with instead of answering; None for none.
        error_after: Pieces sent before the error.
        hang: True never answers.
        gate: Opened by the test, lets the answer begin; None begins at once.
        says: Text of an error in the stream instead of an answer, `{id}` for the request's id and
            `{prompt}` for its prompt; empty for none.
        times_out: True says nothing until the request's timeout and ends it then with an error.
    """

    tokens: tuple[str, ...] = ("a", "b", "c")
    step_s: float = 0.0
    first_s: float = 0.0
    rest_s: float = 0.0
    error: grpc.StatusCode | None = None
    error_text: str = "broken by the test"
    error_after: int = 0
    hang: bool = False
    gate: asyncio.Event | None = None
    says: str = ""
    times_out: bool = False


@dataclass
class Received:
    """One request a model got.

    Attributes:
        model: Model name.
        prompt: Prompt.
        sampling: Sampling parameters.
        metadata: The call's metadata.
        time_left_s: The call's own deadline, seconds.
        timeout_us: Triton's timeout parameter.
        end: "done", "cancelled", "error", "timeout", or empty while it runs.
    """

    model: str
    prompt: str
    sampling: dict[str, Any]
    metadata: dict[str, Any]
    time_left_s: float | None
    timeout_us: int
    end: str = ""


@dataclass
class FakeTriton(kserve_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One endpoint; `scripts` by model name, `default` for the others.

    `parameters` is what every model says of itself, `configs` what one of a name does; with any
    `configs` there are no models but these.
    """

    scripts: dict[str, Script] = field(default_factory=dict)
    configs: dict[str, dict[str, str]] = field(default_factory=dict)
    default: Script = field(default_factory=Script)
    parameters: dict[str, str] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    on_request: Callable[[Received], None] = lambda _: None
    credentials: Any = None
    server: grpc.aio.Server | None = None
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        """Its address; stays the same over stop and start."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> FakeTriton:
        """Listens; on the same port as before if it was started before."""
        # Real ones take messages of any size.
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.aio.server(options=options)
        kserve_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        if self.credentials is None:
            self.server.add_insecure_port(self.address)
        else:
            self.server.add_secure_port(self.address, self.credentials)
        await self.server.start()
        return self

    async def stop(self) -> None:
        """Goes away as a killed process would: running calls break off."""
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    async def ServerLive(self, request: Any, context: Any) -> kserve.ServerLiveResponse:
        """Is live."""
        return kserve.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> kserve.ServerReadyResponse:
        """Is ready."""
        return kserve.ServerReadyResponse(ready=True)

    async def ModelReady(self, request: Any, context: Any) -> kserve.ModelReadyResponse:
        """Every model is ready."""
        return kserve.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> kserve.ModelConfigResponse:
        """The model's parameters, and the inputs that a tier needs unless it says otherwise."""
        if self.configs and request.name not in self.configs:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model {request.name}")
        response = kserve.ModelConfigResponse()
        response.config.name = request.name
        parameters = self.parameters | self.configs.get(request.name, {})
        for key, text in parameters.items():
            response.config.parameters[key].string_value = text
        response.config.backend = parameters.get("backend", "")
        inputs = parameters.get("inputs", "text_input,stream,sampling_parameters")
        for name in inputs.split(","):
            response.config.input.add(name=name)
        return response

    async def RepositoryIndex(self, request: Any, context: Any) -> kserve.RepositoryIndexResponse:
        """The models of `configs`."""
        response = kserve.RepositoryIndexResponse()
        for name in self.configs:
            response.models.add(name=name, state="READY")
        return response

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[kserve.ModelInferRequest], context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        """Answers requests from their models' scripts, one after the other."""
        async for request in request_iterator:
            async for response in self._answers(request, context):
                yield response

    async def _answers(
        self, request: kserve.ModelInferRequest, context: Any
    ) -> AsyncIterator[kserve.ModelStreamInferResponse]:
        entry = _received(request, context)
        self.received.append(entry)
        self.on_request(entry)
        script = self.scripts.get(request.model_name, self.default)
        stream = request.raw_input_contents[1] == b"\x01"
        try:
            if script.hang:
                await asyncio.Event().wait()
            if script.says:
                entry.end = "error"
                text = script.says.format(id=request.id, prompt=entry.prompt)
                yield kserve.ModelStreamInferResponse(error_message=text)
                return
            if script.times_out:
                await asyncio.sleep(entry.timeout_us / 1e6)
                entry.end = "timeout"
                yield kserve.ModelStreamInferResponse(error_message="Request timeout expired")
                return
            if script.gate is not None:
                await script.gate.wait()
            await asyncio.sleep(script.first_s)
            limit = int(entry.sampling.get("max_tokens", 16))
            tokens = script.tokens[:limit]
            for index, token in enumerate(tokens):
                if script.error is not None and index >= script.error_after:
                    break
                step_s = script.step_s + (script.rest_s if index == 1 else 0.0)
                if step_s:
                    await asyncio.sleep(step_s)
                if stream:
                    yield _response(request.model_name, token, 1, final=False)
            if script.error is not None:
                entry.end = "error"
                await context.abort(script.error, script.error_text)
            rest = ("", 0) if stream else ("".join(tokens), len(tokens))
            entry.end = "done"
            yield _response(request.model_name, *rest, final=True)
        except BaseException:
            entry.end = entry.end or "cancelled"
            raise


def _received(request: kserve.ModelInferRequest, context: Any) -> Received:
    raw = request.raw_input_contents
    return Received(
        model=request.model_name,
        prompt=raw[0][4:].decode(),
        sampling=json.loads(raw[2][4:]),
        metadata=dict(context.invocation_metadata() or ()),
        time_left_s=context.time_remaining(),
        timeout_us=request.parameters["timeout"].int64_param,
    )


def _response(
    model: str, text: str, token_count: int, *, final: bool
) -> kserve.ModelStreamInferResponse:
    response = kserve.ModelInferResponse(model_name=model)
    if final:
        response.parameters["triton_final_response"].bool_param = True
    if text or not final:
        data = text.encode()
        response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(data).to_bytes(4, "little") + data)
        response.outputs.add(name="num_output_tokens", datatype="UINT32", shape=[1])
        response.raw_output_contents.append(token_count.to_bytes(4, "little"))
    if final:
        reason = b"stop"
        response.outputs.add(name="finish_reason", datatype="BYTES", shape=[1])
        response.raw_output_contents.append(len(reason).to_bytes(4, "little") + reason)
    return kserve.ModelStreamInferResponse(infer_response=response)
