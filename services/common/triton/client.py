"""Asynchronous client of one Triton endpoint, on the raw KServe v2 stubs.

`tritonclient`'s own asynchronous streaming client does not pass `enable_empty_final_response` on
and then waits for ever, and it costs more per request; only its generated stubs are used here.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.access.tls import Tls
from services.common.channels import connection_of, open_channel
from services.common.prompt_sizes import MOST_PROMPT_BYTES, message_bytes
from services.common.tiers.answer import Budget, TierChunk
from services.common.tiers.client import TierClient
from services.common.tiers.errors import (
    BAD_ANSWER,
    REASON_DEADLINE,
    TierDeadlineError,
    TierError,
    TierInvalidError,
    TierUnavailableError,
    TierUnknownError,
    bad_answer,
)
from services.common.tiers.model import TierModelConfig
from services.common.times import from_ns
from services.common.triton.answer import AnswerReader, Forms
from services.common.triton.errors import error_of_status, error_of_text
from services.common.triton.streams import Asking, TierStreams

CONTROL_TIMEOUT_S = 2.0
_MAX_RECEIVED_BYTES = 4 * 1024 * 1024
_MAX_SENT_BYTES = message_bytes(MOST_PROMPT_BYTES)
"""Room for the longest prompt that settings allow."""
_MOST_MODELS = 2_000
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_RECEIVED_BYTES),
    ("grpc.max_send_message_length", _MAX_SENT_BYTES),
    # Endpoints at one address in different objects (tests, restarts) must not share backoff.
    ("grpc.use_local_subchannel_pool", 1),
)
_INFER = "/inference.GRPCInferenceService/ModelStreamInfer"
_ASK_COUNT = "return_num_input_tokens"
_COUNT = "num_input_tokens"
_COUNT_BYTES = 4
_TRUE = b"\x01"
_FALSE = b"\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCounters:
    """Triton's counters of one model since it was loaded; times are totals in seconds.

    Attributes:
        model: Model name.
        inference_count: Requests executed, batch elements counted singly.
        execution_count: Calls of the model.
        success_count: Requests that ended well.
        fail_count: Requests that failed or were refused.
        queue_s: Time in Triton's own queue.
        compute_s: Time in the model.
    """

    model: str
    inference_count: int
    execution_count: int
    success_count: int
    fail_count: int
    queue_s: float
    compute_s: float


class TritonClient(TierClient):
    """Calls one Triton endpoint. Make it once per endpoint inside a running event loop."""

    def __init__(
        self,
        address: str,
        *,
        control_timeout_s: float = CONTROL_TIMEOUT_S,
        cancel_grace_s: float = 0.0,
        most_idle_streams: int = 0,
        tls: Tls | None = None,
    ) -> None:
        """Opens a channel lazily; nothing is sent yet.

        Args:
            address: `host:port` of Triton's gRPC listener.
            control_timeout_s: Deadline of every call but `generate`.
            cancel_grace_s: How much longer than its timeout a call of `generate` may take before
                gRPC cancels it, seconds. The tier gets the bare timeout and ends the request
                itself; streams that are cancelled while their tier answers can hang Triton.
            most_idle_streams: How many calls that have brought their answer are kept for the next
                requests; 0 makes a call for each request.
            tls: Certificates; None means plain text.
        """
        self.address = address
        self._cancel_grace_s = cancel_grace_s
        self._control_timeout_s = control_timeout_s
        self._channel = open_channel(address, _CHANNEL_OPTIONS, tls)
        stub: Any = kserve_grpc.GRPCInferenceServiceStub(self._channel)
        self._stub = stub
        # Bytes in and out: both are put together and taken apart faster than as messages.
        infer: Any = self._channel.stream_stream(_INFER)
        self._streams = TierStreams(infer, most_idle_streams, connection_of(self._channel))
        self._templates: dict[str, bytes] = {}
        self._forms: dict[str, Forms] = {}
        # Triton puts the request's id before some error texts: it must be none that a caller knows.
        self._id_prefix = secrets.token_hex(8)
        self._id_numbers = itertools.count(1)

    async def close(self) -> None:
        """Closes the channel; running calls are cancelled."""
        await self._streams.close()
        await self._channel.close()

    @property
    def stream_count(self) -> int:
        """How many calls for answers are open, idle ones included."""
        return len(self._streams)

    @property
    def busy_count(self) -> int:
        """How many calls carry a request now."""
        return self._streams.busy_count

    async def is_live(self) -> bool:
        """Returns whether the server answers at all."""
        try:
            reply = await self._control(self._stub.ServerLive, kserve.ServerLiveRequest())
        except TierError:
            return False
        return bool(reply.live)

    async def is_ready(self, model: str = "") -> bool:
        """Returns whether a model, or without a name the whole server, can serve."""
        try:
            if model:
                request = kserve.ModelReadyRequest(name=model)
                reply = await self._control(self._stub.ModelReady, request)
            else:
                reply = await self._control(self._stub.ServerReady, kserve.ServerReadyRequest())
        except TierError:
            return False
        return bool(reply.ready)

    async def loaded_models(self) -> tuple[str, ...]:
        """Returns the names of all models that are ready, in order of name.

        Raises:
            TierError: The endpoint did not answer.
        """
        request = kserve.RepositoryIndexRequest(ready=True)
        reply = await self._control(self._stub.RepositoryIndex, request)
        return tuple(sorted(model.name for model in reply.models))

    async def statistics(self, model: str = "") -> dict[str, ModelCounters]:
        """Returns the counters per model name. One call costs Triton some 0.4 ms.

        Raises:
            TierError: The endpoint did not answer, or has more models than anybody would load.
        """
        request = kserve.ModelStatisticsRequest(name=model)
        reply = await self._control(self._stub.ModelStatistics, request)
        if (count := len(reply.model_stats)) > _MOST_MODELS:
            raise TierUnknownError("TOO_MANY_MODELS", f"statistics of {count} models")
        return {stats.name: _counters(stats) for stats in reply.model_stats}

    async def model_config(self, model: str) -> TierModelConfig:
        """Returns a model's configuration.

        Raises:
            TierError: The endpoint did not answer, or has no such model.
        """
        request = kserve.ModelConfigRequest(name=model)
        config = (await self._control(self._stub.ModelConfig, request)).config
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        inputs = frozenset(each.name for each in config.input)
        return TierModelConfig(
            model=config.name,
            backend=config.backend,
            parameters=parameters,
            max_batch=config.max_batch_size,
            inputs=inputs,
            counts_prompts=_ASK_COUNT in inputs,
        )

    async def prompt_token_count(self, model: str, prompt: str, *, timeout_s: float) -> int:
        """Returns the length of a prompt in a tier's own tokens, by an answer of one token.

        Only for models whose configuration says `counts_prompts`.

        Raises:
            TierError: The endpoint did not answer, or did not count.
        """
        request = kserve.ModelInferRequest.FromString(
            self._request(self._new_id(), model, prompt, 1, timeout_s, 0.0, 0, stream=False)
        )
        request.inputs.add(name=_ASK_COUNT, datatype="BOOL", shape=[1])
        request.raw_input_contents.append(_TRUE)
        count = 0
        try:
            # To its end: streams that are cancelled while their tier answers can hang Triton.
            async for reply in self._stub.ModelStreamInfer(iter([request]), timeout=timeout_s):
                if reply.error_message:
                    raise error_of_text(reply.error_message, request.id)
                answer = reply.infer_response
                for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=False):
                    if output.name == _COUNT and len(raw) == _COUNT_BYTES:
                        count = int.from_bytes(raw, "little")
        except grpc.aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or "") from None
        if not count:
            raise TierUnavailableError(BAD_ANSWER, f"the endpoint sent no {_COUNT}")
        return count

    def ask(
        self,
        model: str,
        prompt: str,
        max_output_tokens: int,
        *,
        timeout_s: float,
        on_chunk: Callable[[TierChunk], None],
        on_end: Callable[[Exception | None], None],
        temperature: float = 0.0,
        seed: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        stream: bool = True,
    ) -> Asking:
        """Asks a tier for an answer, which comes by callbacks; see `TierClient`.

        The time left is Triton's request timeout and, with the grace added, the time after which
        the request is cancelled. Metadata are the call's: `traceparent` only of a request that is
        sampled (Triton would trace another all the same), and never `triton_grpc_error`, which
        asks for a gRPC status instead of a text inside a failed stream: two such failures at once
        bring Triton 2.51 down with a segmentation fault.
        """
        if timeout_s <= 0.0:
            raise TierDeadlineError(REASON_DEADLINE, "no time was left for the tier")
        request_id = self._new_id()
        request = self._request(
            request_id, model, prompt, max_output_tokens, timeout_s, temperature, seed, stream
        )
        if len(request) > _MAX_SENT_BYTES:
            raise TierInvalidError("MESSAGE_TOO_LARGE", "the prompt is too long for one message")
        end_s = asyncio.get_running_loop().time() + timeout_s + self._cancel_grace_s
        forms = self._forms.get(model)
        if forms is None:
            forms = self._forms[model] = []
        reader = AnswerReader(request_id, Budget(max_output_tokens), forms)
        asking = Asking(request, reader, end_s, on_chunk, on_end)
        self._streams.ask(asking, tuple(metadata))
        return asking

    def _new_id(self) -> str:
        return f"{self._id_prefix}{next(self._id_numbers):016x}"

    def _request(
        self,
        request_id: str,
        model: str,
        prompt: str,
        max_output_tokens: int,
        timeout_s: float,
        temperature: float,
        seed: int,
        stream: bool,
    ) -> bytes:
        """Returns the message of a request."""
        template = self._templates.get(model)
        if template is None:
            template = self._templates[model] = _template(model).SerializeToString()
        request = kserve.ModelInferRequest()
        request.id = request_id
        request.parameters["timeout"].int64_param = max(1, int(timeout_s * 1e6))
        sampling = (
            f'{{"max_tokens":{max_output_tokens:d},"temperature":{temperature!r},"seed":{seed:d}}}'
        )
        request.raw_input_contents.extend(
            (
                _bytes_tensor(prompt.encode()),
                _TRUE if stream else _FALSE,
                _bytes_tensor(sampling.encode()),
                _TRUE,
                _TRUE,
                _TRUE,
            )
        )
        # Messages whose bytes follow each other are one message that has the fields of both.
        return template + bytes(request.SerializeToString())

    async def _control(self, method: Any, request: Any) -> Any:
        try:
            reply = await method(request, timeout=self._control_timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of_status(error.code(), error.details() or "") from None
        if reply is None:  # how grpc.aio hands over what it cannot read
            raise bad_answer("bytes that are no message")
        return reply


def _template(model: str) -> kserve.ModelInferRequest:
    """Builds what is the same in every request to a model; the order is that of the contents."""
    request = kserve.ModelInferRequest(model_name=model)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, datatype in (
        ("text_input", "BYTES"),
        ("stream", "BOOL"),
        ("sampling_parameters", "BYTES"),
        ("exclude_input_in_output", "BOOL"),
        ("return_finish_reason", "BOOL"),
        ("return_num_output_tokens", "BOOL"),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1])
    return request


def _bytes_tensor(data: bytes) -> bytes:
    """Encodes one element of a BYTES tensor: its length in 4 bytes, then itself."""
    return len(data).to_bytes(4, "little") + data


def _counters(stats: kserve.ModelStatistics) -> ModelCounters:
    """Converts Triton's statistics of one model."""
    inference = stats.inference_stats
    return ModelCounters(
        model=stats.name,
        inference_count=stats.inference_count,
        execution_count=stats.execution_count,
        success_count=inference.success.count,
        fail_count=inference.fail.count,
        queue_s=from_ns(inference.queue.ns),
        compute_s=from_ns(inference.compute_infer.ns),
    )
