"""The KServe v2 door: Triton's `inference.GRPCInferenceService`, answered by the router.

Requests are read in `asking.py`, answers made in `convert.py`, and in between they take the same
path as those of `Generate` and `GenerateStream`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import grpc.aio
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.common.access.guard import check_again
from services.common.clock import Clock
from services.common.errors import (
    DomainError,
    NotServedError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.time_limits import TimeLimits
from services.router_inference.doors.convert import waited_s
from services.router_inference.doors.intake import Intake
from services.router_inference.doors.kserve import metadata
from services.router_inference.doors.kserve.asking import Asked, Reader, in_words_of_the_door
from services.router_inference.doors.kserve.convert import Reply
from services.router_inference.doors.kserve.models import Models, TensorError, UnknownModelError
from services.router_inference.doors.kserve.statistics import Statistics
from services.router_inference.doors.kserve.stream import Answering, RequestStream
from services.router_inference.job import Job
from services.router_inference.path.dispatch import Dispatcher
from services.router_inference.path.relay import StreamRelay
from services.router_inference.path.sink import TextSink

SERVICE_NAME = kserve.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
register = kserve_grpc.add_GRPCInferenceServiceServicer_to_server
BY_STATUS = ("triton_grpc_error", "true")
"""Metadata of a call: the first error ends it with a status instead of being told in it."""
REASON_CLIENT_STREAMS = "CLIENT_STREAMS"
_RETRY_S = 1.0
_CHECK_AGAIN_S = 1.0
"""How long a call goes on before it is looked at again who makes it, seconds."""
Context = grpc.aio.ServicerContext[Any, Any]


class KserveServicer(kserve_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves the data plane to clients of Triton."""

    def __init__(
        self,
        *,
        models: Models,
        intake: Intake,
        dispatcher: Dispatcher,
        clock: Clock,
        new_relay: Callable[[], StreamRelay],
        client_of: Callable[[Context], str],
        tasks: Callable[[], tuple[Sequence[str], str]],
        max_streams_per_client: int,
    ) -> None:
        """Takes its parts.

        `new_relay` makes the relay of one streamed answer, `client_of` tells whose a call is,
        `tasks` the names of the tasks and the default one. A client may have
        `max_streams_per_client` calls of ModelStreamInfer open, in which it need ask nothing.
        """
        self._models = models
        self._reader = Reader(models)
        self._intake = intake
        self._dispatcher = dispatcher
        self._clock = clock
        self._client_of = client_of
        self._tasks = tasks
        self._statistics = Statistics(models.names)
        self._answering = Answering(
            dispatcher, new_relay, self._statistics.on_end, clock, TimeLimits()
        )
        self._streams: set[RequestStream] = set()
        self._max_per_client = max_streams_per_client
        self._open_by_client: Counter[str] = Counter()
        self._is_leaving = False

    def leave(self) -> None:
        """Has the calls that are open end once their requests under way have ended."""
        self._is_leaving = True
        for stream in self._streams:
            stream.leave()

    # ---- what there is ----

    async def ServerLive(
        self, request: kserve.ServerLiveRequest, context: Context
    ) -> kserve.ServerLiveResponse:
        """Says that the process answers."""
        return kserve.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: kserve.ServerReadyRequest, context: Context
    ) -> kserve.ServerReadyResponse:
        """Says whether any model can answer."""
        return kserve.ServerReadyResponse(ready=bool(self._ready()))

    async def ModelReady(
        self, request: kserve.ModelReadyRequest, context: Context
    ) -> kserve.ModelReadyResponse:
        """Says whether a model can answer; one that does not exist cannot."""
        try:
            name = self._models.find(request.name, request.version).name
        except UnknownModelError:
            name = ""
        return kserve.ModelReadyResponse(ready=name in self._ready())

    async def ServerMetadata(
        self, request: kserve.ServerMetadataRequest, context: Context
    ) -> kserve.ServerMetadataResponse:
        """Says what this is."""
        return metadata.server_metadata()

    async def ModelMetadata(
        self, request: kserve.ModelMetadataRequest, context: Context
    ) -> kserve.ModelMetadataResponse:
        """Says which tensors a model has."""
        return metadata.model_metadata(self._models.find(request.name, request.version))

    async def ModelConfig(
        self, request: kserve.ModelConfigRequest, context: Context
    ) -> kserve.ModelConfigResponse:
        """Says how a model is called."""
        model = self._models.find(request.name, request.version)
        return metadata.model_config(model, *self._tasks())

    async def RepositoryIndex(
        self, request: kserve.RepositoryIndexRequest, context: Context
    ) -> kserve.RepositoryIndexResponse:
        """Lists the models."""
        if request.repository_name:
            raise NotServedError("'repository_name' specification is not supported")
        return metadata.repository_index(self._models, self._ready(), only_ready=request.ready)

    async def ModelStatistics(
        self, request: kserve.ModelStatisticsRequest, context: Context
    ) -> kserve.ModelStatisticsResponse:
        """Says how many requests the models have answered by this door, and in which time."""
        if not request.name:
            return await self._statistics_of(self._models.names)
        try:
            model = self._models.find(request.name, request.version)
        except UnknownModelError as error:
            # Triton's answer to this question is another one than everywhere else.
            raise TensorError("name", error.message) from None
        return await self._statistics_of((model.name,))

    async def _statistics_of(self, names: Sequence[str]) -> kserve.ModelStatisticsResponse:
        return self._statistics.read(names)

    def _ready(self) -> set[str]:
        return set() if self._is_leaving else self._models.ready(self._clock.monotonic_s())

    # ---- inference ----

    async def ModelInfer(
        self, request: kserve.ModelInferRequest, context: Context
    ) -> kserve.ModelInferResponse:
        """Answers a prompt in one piece."""
        call_metadata = context.invocation_metadata()
        left_s = context.time_remaining()
        asked, job = self._read(
            request,
            call_left_s=left_s,
            waited_s=waited_s(left_s, call_metadata),
            metadata=call_metadata,
            client=self._client_of(context),
            may_stream=False,
        )
        sink = TextSink()
        try:
            await self._dispatcher.answer(job, sink)
        except DomainError as error:
            raise in_words_of_the_door(error, asked) from None
        finally:
            self._statistics.on_end(asked.model.name, job)
        return Reply(asked).whole(job, sink.text())

    # A generator could not have many requests under way; gRPC takes either kind.
    async def ModelStreamInfer(
        self, requests: AsyncIterator[kserve.ModelInferRequest], context: Context
    ) -> None:
        """Answers prompts, in whole or piece by piece, as they come."""
        if self._is_leaving:
            raise _going_away()
        call_metadata = context.invocation_metadata() or ()
        client = self._client_of(context)
        self._check_room(client)
        check_due_s = self._clock.monotonic_s() + _CHECK_AGAIN_S

        def read(request: kserve.ModelInferRequest) -> tuple[Asked, Job]:
            nonlocal check_due_s
            now_s = self._clock.monotonic_s()
            if now_s >= check_due_s:
                check_again()
                check_due_s = now_s + _CHECK_AGAIN_S
            return self._read(
                request,
                call_left_s=context.time_remaining(),
                waited_s=0.0,
                metadata=call_metadata,
                client=client,
            )

        stream = RequestStream(
            context=context,
            answering=self._answering,
            read=read,
            ends_by_status=BY_STATUS in call_metadata,
        )
        self._streams.add(stream)
        self._open_by_client[client] += 1
        try:
            await stream.run(requests)
        finally:
            self._streams.discard(stream)
            self._open_by_client[client] -= 1
            if not self._open_by_client[client]:
                del self._open_by_client[client]
        if stream.was_left:
            raise _going_away()

    def _check_room(self, client: str) -> None:
        """Raises ResourceExhaustedError if a client has as many calls open as it may."""
        count = self._open_by_client[client] + 1
        if count > self._max_per_client:
            limit = f"{self._max_per_client} open streams of one client"
            raise ResourceExhaustedError(REASON_CLIENT_STREAMS, limit, str(count), _RETRY_S)

    def _read(
        self, request: kserve.ModelInferRequest, *, may_stream: bool = True, **call: Any
    ) -> tuple[Asked, Job]:
        """Returns a request and its job.

        Raises:
            DomainError: It is wrong.
        """
        try:
            asked = self._reader.read(request, **call)
            if asked.ask.is_stream and not may_stream:
                text = "ModelInfer answers in one piece; call ModelStreamInfer for stream = true"
                raise TensorError("stream", text)
        except DomainError as error:
            self._intake.on_invalid(error)
            raise
        try:
            return asked, self._intake.job(asked.ask, prefix="")
        except DomainError as error:
            raise in_words_of_the_door(error, asked) from None

    # ---- what is not served ----

    async def RepositoryModelLoad(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_LOADING)

    async def RepositoryModelUnload(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_LOADING)

    async def SystemSharedMemoryStatus(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def SystemSharedMemoryRegister(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def SystemSharedMemoryUnregister(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def CudaSharedMemoryStatus(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def CudaSharedMemoryRegister(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def CudaSharedMemoryUnregister(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError(_NO_SHARED_MEMORY)

    async def TraceSetting(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError("tracing is set by the router's settings (sample_ratio, OTEL_*)")

    async def LogSettings(self, request: Any, context: Context) -> NoReturn:
        """Says why not."""
        raise NotServedError("logging is set by the router's settings ([log])")


_NO_LOADING = "models are the tiers of the mesh, which are loaded at its endpoints"
_NO_SHARED_MEMORY = "shared memory is not served: a router and its clients share no machine"


def _going_away() -> UnavailableError:
    return UnavailableError("DRAINING", "this server is going away; call another one")
