"""The server builder with a real grpc.aio server: errors, limits, health, reflection, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common import errors
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.common.metrics import start_metrics_server
from services.common.server import GrpcServer, ServerSettings, ServiceDefinition, build_server
from services.common.start_error import StartError
from services.common.state.errors import StateUnavailableError, VersionMismatchError
from tests.details import details_of
from tests.soak.http2 import Reader
from tests.waiting import LIMIT_S, until
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

NEVER_S = 100 * LIMIT_S
NAME = "tiercel.trainer.v1.TrainerService"


class Servicer(pb_grpc.TrainerServiceServicer):
    """Raises what the test put into `error`; leaves most methods out."""

    error: BaseException | None = None
    snapshot = b""
    """What every message of a watch carries; with one, messages follow each other at once."""

    def __init__(self) -> None:
        self.sent = 0
        self.is_working = asyncio.Event()
        self.may_end = asyncio.Event()

    async def RollbackPolicy(self, request: Any, context: Any) -> pb.RollbackPolicyResponse:
        """Answers once the test lets it."""
        self.is_working.set()
        await self.may_end.wait()
        return pb.RollbackPolicyResponse(activation=3)

    async def ListPolicies(self, request: Any, context: Any) -> pb.ListPoliciesResponse:
        """Answers, or raises."""
        if self.error is not None:
            raise self.error
        return pb.ListPoliciesResponse(activation=7)

    async def WatchPolicies(
        self, request: Any, context: Any
    ) -> AsyncIterator[pb.WatchPoliciesResponse]:
        """Answers one message, then raises or waits for the client to leave."""
        yield pb.WatchPoliciesResponse(activation=1)
        while self.snapshot:
            self.sent += 1
            yield pb.WatchPoliciesResponse(activation=1, snapshot=self.snapshot)
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


class Served:
    """A running server and a channel to it."""

    def __init__(self, server: GrpcServer, servicer: Servicer, registry: CollectorRegistry) -> None:
        self.server = server
        self.servicer = servicer
        self.registry = registry
        self.channel = grpc.aio.insecure_channel(str(server.address))
        self.stub = pb_grpc.TrainerServiceStub(self.channel)

    def handled(self, method: str, code: str, reason: str) -> float:
        """Returns how many calls were counted with these labels."""
        labels = {"method": f"{NAME}/{method}", "code": code, "reason": reason}
        return self.registry.get_sample_value("tiercel_rpc_handled_total", labels) or 0.0

    def running(self) -> float:
        """Returns how many calls run."""
        return self.registry.get_sample_value("tiercel_rpc_running") or 0.0


async def build(
    listen: str, servicer: Servicer, registry: CollectorRegistry, **settings: Any
) -> GrpcServer:
    """Builds a server with the servicer and a small message limit."""

    def register(server: grpc.aio.Server) -> None:
        pb_grpc.add_TrainerServiceServicer_to_server(servicer, server)

    return await build_server(
        services=[ServiceDefinition(NAME, register, watches=("WatchPolicies",))],
        settings=ServerSettings(
            listen=listen,
            operate_listen="127.0.0.1:0",
            metrics_listen="",
            max_message_bytes=2048,
            **settings,
        ),
        registry=registry,
        clock=SystemClock(),
        log=get_logger("test"),
    )


@contextlib.asynccontextmanager
async def serving(listen: str = "127.0.0.1:0", **settings: Any) -> AsyncIterator[Served]:
    """Runs a server, on a free port unless told otherwise."""
    servicer, registry = Servicer(), CollectorRegistry()  # type: ignore[abstract]
    server = await build(listen, servicer, registry, **settings)
    await server.start()
    found = Served(server, servicer, registry)
    yield found
    await found.channel.close()
    await server.stop(0)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server on a free port."""
    async with serving() as found:
        yield found


TABLE: list[tuple[BaseException, grpc.StatusCode, str]] = [
    (
        errors.InvalidArgumentError("spec.prompt", "is empty", "1 to 65536 bytes"),
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
    ),
    (errors.NotFoundError("task", "x", ["a"]), grpc.StatusCode.NOT_FOUND, "TASK_NOT_FOUND"),
    (
        errors.ResourceExhaustedError("DEADLINE_NOT_REACHABLE", "0.1 s", "0.3 s", 0.25),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "DEADLINE_NOT_REACHABLE",
    ),
    (errors.UnavailableError("NO_ENDPOINT"), grpc.StatusCode.UNAVAILABLE, "NO_ENDPOINT"),
    (errors.NotServedError("no shared memory"), grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED"),
    (
        errors.FailedPreconditionError("already running", reason="TRAINING_RUNNING"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "TRAINING_RUNNING",
    ),
    (errors.AbortedError("changed"), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
    (
        errors.AlreadyExistsError("endpoint", "e"),
        grpc.StatusCode.ALREADY_EXISTS,
        "ENDPOINT_ALREADY_EXISTS",
    ),
    (
        errors.DeadlineExceededError("late"),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
    ),
    (
        errors.UnauthenticatedError("who?", reason="MISSING_CREDENTIALS"),
        grpc.StatusCode.UNAUTHENTICATED,
        "MISSING_CREDENTIALS",
    ),
    (
        errors.PermissionDeniedError("no", reason="ROLE_MISSING"),
        grpc.StatusCode.PERMISSION_DENIED,
        "ROLE_MISSING",
    ),
    (StateUnavailableError("x"), grpc.StatusCode.UNAVAILABLE, "STATE_UNAVAILABLE"),
    (VersionMismatchError("activation", 1, 2), grpc.StatusCode.ABORTED, "VERSION_MISMATCH"),
    (KeyError("secret"), grpc.StatusCode.INTERNAL, "INTERNAL"),
]


async def call_method(served: Served, method: str, received: list[Any]) -> None:
    """Calls a method to its end, collecting what it streams."""
    if method == "ListPolicies":
        await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
        return
    async for response in served.stub.WatchPolicies(pb.WatchPoliciesRequest(), timeout=LIMIT_S):
        received.append(response)  # noqa: PERF401 - what came before the error must be kept


@pytest.mark.parametrize(("error", "code", "reason"), TABLE, ids=lambda v: type(v).__name__)
async def test_every_error_has_its_status_and_error_info(
    served: Served, error: BaseException, code: grpc.StatusCode, reason: str
) -> None:
    """Unary and streaming methods answer by the same table, and the call is counted."""
    served.servicer.error = error
    calls = {"ListPolicies": 0, "WatchPolicies": 1}
    for method, received_count in calls.items():
        received: list[Any] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_method(served, method, received)
        assert len(received) == received_count
        assert caught.value.code() is code
        info = details_of(caught.value)["ErrorInfo"]
        assert (info.reason, info.domain) == (reason, "tiercel")
        assert served.handled(method, code.name, reason) == 1


def test_table_covers_every_domain_error() -> None:
    """A new domain error cannot be forgotten."""
    tested = {type(error) for error, _, _ in TABLE}
    domain = set(errors.DomainError.__subclasses__())
    assert domain | {StateUnavailableError, VersionMismatchError, KeyError} == tested
    assert set(errors.STATUS_BY_ERROR) == tested - {KeyError} | {NotImplementedError}


async def test_details_name_field_and_delay(served: Served) -> None:
    """BadRequest and RetryInfo carry what a client needs to act."""
    served.servicer.error = TABLE[0][0]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
    (violation,) = details_of(caught.value)["BadRequest"].field_violations
    assert violation.field == "spec.prompt"
    assert violation.description == "is empty (limit: 1 to 65536 bytes)"
    served.servicer.error = TABLE[2][0]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
    assert details_of(caught.value)["RetryInfo"].retry_delay.ToNanoseconds() == 250_000_000


async def test_bug_tells_the_caller_nothing_and_the_log_everything(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """The text is generic; the traceback is logged."""
    served.servicer.error = KeyError("secret")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
    assert caught.value.details() == "internal error"
    assert "KeyError: 'secret'" in caplog.text


async def test_method_left_out_is_unimplemented(served: Served) -> None:
    """A generated base method answers UNIMPLEMENTED with a reason."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.GetTraining(pb.GetTrainingRequest(), timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert served.handled("GetTraining", "UNIMPLEMENTED", "METHOD_NOT_IMPLEMENTED") == 1


@pytest.mark.parametrize("method", ["/tiercel.trainer.v1.TrainerService/Nope", "/x.Y/Z", "/"])
async def test_a_method_that_is_not_there_is_counted(served: Served, method: str) -> None:
    """Whatever its kind, with a reason; what callers make up is no label."""
    unary: Any = served.channel.unary_unary(method)
    stream: Any = served.channel.stream_stream(method)
    for call in (unary(b"", timeout=LIMIT_S), stream(timeout=LIMIT_S)):
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "METHOD_NOT_FOUND" in str(await call.trailing_metadata())
    labels = {"method": "unknown", "code": "UNIMPLEMENTED", "reason": "METHOD_NOT_FOUND"}
    assert served.registry.get_sample_value("tiercel_rpc_handled_total", labels) == 2


@pytest.mark.parametrize("kind", ["stream_stream", "stream_unary"])
@pytest.mark.parametrize("how", ["ended", "cancelled", "late"])
async def test_a_stream_that_its_client_broke_off_is_not_ok(kind: str, how: str) -> None:
    """To the method it looks as one that has ended; each is in one count, and in the right one."""

    async def take(requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"".join([each async for each in requests])

    async def echo(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for each in requests:
            yield each

    handlers: dict[str, Any] = {
        "stream_unary": grpc.stream_unary_rpc_method_handler(take),
        "stream_stream": grpc.stream_stream_rpc_method_handler(echo),
    }
    found = grpc.method_handlers_generic_handler("a.B", handlers)
    registry = CollectorRegistry()
    server = await build_server(
        services=[ServiceDefinition("a.B", lambda each: each.add_generic_rpc_handlers((found,)))],
        settings=ServerSettings(listen="127.0.0.1:0", metrics_listen=""),
        registry=registry,
        clock=SystemClock(),
        log=get_logger("test"),
    )
    await server.start()
    async with grpc.aio.insecure_channel(str(server.address)) as channel:
        await channel.channel_ready()  # to connect is no part of the time that runs out
        call = getattr(channel, kind)(f"/a.B/{kind}")(timeout=2.0 if how == "late" else LIMIT_S)
        await call.write(b"x")
        if kind == "stream_stream":
            await call.read()
        if how == "cancelled":
            call.cancel()
        elif how == "ended":
            await call.done_writing()
        code = (await call.code()).name
        reason = {"ended": "", "cancelled": "CLIENT_CANCELLED", "late": "CLIENT_DEADLINE"}[how]

        def counted() -> dict[tuple[str, str], float]:
            return {
                (sample.labels["code"], sample.labels["reason"]): sample.value
                for metric in registry.collect()
                for sample in metric.samples
                if sample.name == "tiercel_rpc_handled_total"
                and sample.value
                and sample.labels["method"].startswith("a.B")
            }

        await until(lambda: bool(counted()), "the call is counted")
        assert counted() == {(code, reason): 1.0}
    await server.stop(0)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xff\xff\xff", "MALFORMED_MESSAGE"),
        (b"\x0a\x02\xc3\x28", "MALFORMED_MESSAGE"),
        (b"\x0a\xff\x1f" + b"x" * 4095, "MESSAGE_TOO_LARGE"),
    ],
)
async def test_bad_bytes_are_an_invalid_argument(
    served: Served, payload: bytes, reason: str
) -> None:
    """Malformed bytes, text that is no UTF-8, a large message: refused and counted."""
    call: Any = served.channel.unary_unary(f"/{NAME}/PromotePolicy")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(payload, timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)["ErrorInfo"].reason == reason
    assert served.handled("PromotePolicy", "INVALID_ARGUMENT", reason) == 1


async def test_client_that_leaves_is_counted_as_cancelled(served: Served) -> None:
    """A cancelled stream ends its handler and is counted."""
    call: Any = served.stub.WatchPolicies(pb.WatchPoliciesRequest())
    assert (await call.read()).activation == 1
    call.cancel()
    handled = ("WatchPolicies", "CANCELLED", "CLIENT_CANCELLED")
    await until(lambda: served.handled(*handled), "it is counted as cancelled")


async def test_health_follows_set_serving_and_drain_is_final(served: Served) -> None:
    """Health starts as NOT_SERVING, is earned, and ends with the drain."""
    stub = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service=NAME)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert (await stub.Check(request, timeout=LIMIT_S)).status != serving
    await served.server.set_serving(True)
    assert (await stub.Check(request, timeout=LIMIT_S)).status == serving
    await served.server.enter_drain()
    await served.server.set_serving(True)
    assert (await stub.Check(request, timeout=LIMIT_S)).status != serving


async def test_a_service_may_have_an_address_of_its_own() -> None:
    """It is served there and nowhere else; health says that the process lives, ready or not."""
    servicer = Servicer()  # type: ignore[abstract]

    def register(server: grpc.aio.Server) -> None:
        pb_grpc.add_TrainerServiceServicer_to_server(servicer, server)

    own = {"listen": "127.0.0.1:0", "place": "side", "health_names": ("readiness",)}
    server = await build_server(
        services=[ServiceDefinition(NAME, register, **own)],  # type: ignore[arg-type]
        settings=ServerSettings(listen="127.0.0.1:0", metrics_listen=""),
        registry=CollectorRegistry(),
        clock=SystemClock(),
        log=get_logger("test"),
    )
    await server.start()
    assert set(server.addresses) == {"grpc", "side"}
    health, codes = [], []
    for place in ("grpc", "side"):
        async with grpc.aio.insecure_channel(str(server.addresses[place])) as channel:
            stub: Any = pb_grpc.TrainerServiceStub(channel)
            try:
                await stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
            except grpc.aio.AioRpcError as error:
                codes.append((place, error.code()))
            checks: Any = health_pb2_grpc.HealthStub(channel)
            for name in ("liveness", "readiness", NAME):
                asked = health_pb2.HealthCheckRequest(service=name)
                health.append((await checks.Check(asked, timeout=LIMIT_S)).status)
    assert codes == [("grpc", grpc.StatusCode.UNIMPLEMENTED)]
    status = health_pb2.HealthCheckResponse
    assert health == [status.SERVING, status.NOT_SERVING, status.NOT_SERVING] * 2
    await server.stop(0)


async def test_health_watch_sends_every_change(served: Served) -> None:
    """A method that writes to its context by itself works behind the interceptor."""
    stub = health_pb2_grpc.HealthStub(served.channel)
    call: Any = stub.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=LIMIT_S)
    statuses = [(await call.read()).status]
    await served.server.set_serving(True)
    statuses.append((await call.read()).status)
    response = health_pb2.HealthCheckResponse
    assert statuses == [response.NOT_SERVING, response.SERVING]
    call.cancel()


async def test_a_watcher_of_health_that_leaves_silences_no_other(served: Served) -> None:
    """Who stays hears of the next change."""
    stub = health_pb2_grpc.HealthStub(served.channel)
    request = health_pb2.HealthCheckRequest(service=NAME)
    stays: Any = stub.Watch(request, timeout=LIMIT_S)
    leaves: Any = stub.Watch(request, timeout=LIMIT_S)
    await asyncio.gather(stays.read(), leaves.read())
    leaves.cancel()
    await until(lambda: served.running() == 1, "the other one has left")
    await served.server.set_serving(True)
    assert (await stays.read()).status == health_pb2.HealthCheckResponse.SERVING
    stays.cancel()


async def test_a_watcher_of_health_that_reads_nothing_holds_nobody_up(served: Served) -> None:
    """Neither another watcher, nor the service that changes its health, nor its drain."""
    reader = Reader()
    await reader.connect(str(served.server.address))
    request = health_pb2.HealthCheckRequest(service=NAME)
    await reader.ask("/grpc.health.v1.Health/Watch", request.SerializeToString())
    await until(lambda: served.running() == 1, "its call runs")
    stub = health_pb2_grpc.HealthStub(served.channel)
    call: Any = stub.Watch(request, timeout=LIMIT_S)
    statuses = [(await call.read()).status]
    await asyncio.wait_for(served.server.set_serving(True), LIMIT_S)
    statuses.append((await call.read()).status)
    await asyncio.wait_for(served.server.enter_drain(), LIMIT_S)
    statuses.append((await call.read()).status)
    response = health_pb2.HealthCheckResponse
    assert statuses == [response.NOT_SERVING, response.SERVING, response.NOT_SERVING]
    call.cancel()
    await reader.close()


async def test_watches_take_no_room_from_calls() -> None:
    """Those of health, which strangers may open, have a room of their own, and the others too."""
    most = 3
    async with serving(max_concurrent_calls=most) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        watches: list[Any] = []
        for _ in range(most):
            watches += [
                stub.Watch(health_pb2.HealthCheckRequest(service=NAME)),
                served.stub.WatchPolicies(pb.WatchPoliciesRequest()),
            ]
        await asyncio.gather(*(each.read() for each in watches))
        await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
        for more in (
            stub.Watch(health_pb2.HealthCheckRequest(service=NAME)),
            served.stub.WatchPolicies(pb.WatchPoliciesRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await read_to_end(more)
            assert details_of(caught.value)["ErrorInfo"].reason == "TOO_MANY_WATCHES"
        for each in watches:
            each.cancel()


async def test_health_of_a_name_that_is_none(served: Served) -> None:
    """A check says so; a watcher waits for it, as the protocol has it, unless it is too long."""
    stub = health_pb2_grpc.HealthStub(served.channel)
    for name, code in (("x", "NOT_FOUND"), ("x" * 1_000, "INVALID_ARGUMENT")):
        request = health_pb2.HealthCheckRequest(service=name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(request, timeout=LIMIT_S)
        assert caught.value.code().name == code
    watch: Any = stub.Watch(health_pb2.HealthCheckRequest(service="x"), timeout=LIMIT_S)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_end(stub.Watch(request, timeout=LIMIT_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_deadline_of_the_client_is_counted_as_such(served: Served) -> None:
    """A call its client gave up on is no cancellation by choice."""
    await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)  # it connects
    call: Any = served.stub.WatchPolicies(pb.WatchPoliciesRequest(), timeout=0.9)
    await anext(aiter(call))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_to_end(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    handled = ("WatchPolicies", "DEADLINE_EXCEEDED", "CLIENT_DEADLINE")
    await until(lambda: served.handled(*handled), "it is counted as a client's deadline")


async def read_to_end(call: Any) -> None:
    """Reads a stream until it ends."""
    async for _ in call:
        pass


async def test_reflection_lists_the_service(served: Served) -> None:
    """Tools find the service without its protos."""
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    call = stub.ServerReflectionInfo(iter([request]), timeout=LIMIT_S)
    answer = await call.read()
    assert NAME in {service.name for service in answer.list_services_response.service}


async def test_calls_that_only_wait_end_at_once_at_a_stop(served: Served) -> None:
    """Watchers of health, of a service, of reflection: told to go elsewhere long before the end."""
    health_stub = health_pb2_grpc.HealthStub(served.channel)
    reflection_stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    watches: list[Any] = [
        served.stub.WatchPolicies(pb.WatchPoliciesRequest()),
        health_stub.Watch(health_pb2.HealthCheckRequest(service=NAME)),
        reflection_stub.ServerReflectionInfo(),
    ]
    await watches[2].write(reflection_pb2.ServerReflectionRequest(list_services=""))
    for call in watches:
        await call.read()
    await served.server.enter_drain()
    served.server.end_watches()
    await asyncio.wait_for(served.server.stop(grace_s=NEVER_S), LIMIT_S)
    for call in watches:
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert "going away" in await call.details()
    assert served.handled("WatchPolicies", "UNAVAILABLE", "DRAINING") == 1


async def test_a_watch_that_is_just_sent_something_ends_after_it(served: Served) -> None:
    """A task interrupted in the middle of sending would leave its call open, and hold the stop."""
    served.servicer.snapshot = bytes(1_000_000)
    watch = served.stub.WatchPolicies(pb.WatchPoliciesRequest())
    await watch.read()

    seen = [0]

    def is_blocked() -> bool:
        """Returns whether the reader who does not read holds up what is sent."""
        seen.append(served.servicer.sent)
        return 0 < seen[-2] == seen[-1]

    await until(is_blocked, "a message waits for its reader")
    served.server.end_watches()
    stopping = asyncio.create_task(served.server.stop(grace_s=NEVER_S))

    async def read_on() -> None:
        while await watch.read():
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read_on(), LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(stopping, LIMIT_S)


async def test_a_call_that_serves_a_request_is_waited_for(served: Served) -> None:
    """Only watches are ended; work gets its grace."""
    call = asyncio.ensure_future(served.stub.RollbackPolicy(pb.RollbackPolicyRequest()))
    await asyncio.wait_for(served.servicer.is_working.wait(), LIMIT_S)
    served.server.end_watches()
    stopping = asyncio.create_task(served.server.stop(grace_s=LIMIT_S))
    served.servicer.may_end.set()
    assert (await call).activation == 3
    await stopping


async def test_who_has_no_request_under_way_holds_no_stop_up() -> None:
    """The stop ends long before the last moment.

    Connections that say nothing or half of their greeting, a call without its message, a watcher
    that does not read.
    """
    async with serving() as served:
        await served.server.set_serving(True)
        address = str(served.server.address)
        host, _, port = address.rpartition(":")
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        held[0][1].write(b"PRI * HT")
        watcher, waiting = Reader(), Reader()
        await watcher.connect(address)
        await watcher.ask("/grpc.health.v1.Health/Watch", b"")
        await waiting.connect(address)
        await waiting.begin(f"/{NAME}/ListPolicies")
        await until(lambda: served.running() == 1, "the watch runs")
        served.server.end_watches()
        await asyncio.wait_for(served.server.stop(grace_s=NEVER_S), LIMIT_S)
        for _, writer in held:
            writer.close()
        await watcher.close()
        await waiting.close()


async def test_a_request_under_way_is_waited_for_however_long_it_is_quiet_beside_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only requests of callers count, not what else goes on."""
    monkeypatch.setattr("services.common.server._QUIET_S", 0.01)
    monkeypatch.setattr("services.common.server._LOOK_S", 0.001)
    call = asyncio.ensure_future(served.stub.RollbackPolicy(pb.RollbackPolicyRequest()))
    await asyncio.wait_for(served.servicer.is_working.wait(), LIMIT_S)
    stopping = asyncio.create_task(served.server.stop(grace_s=NEVER_S))
    await asyncio.wait([stopping], timeout=0.2)
    served.servicer.may_end.set()
    assert (await call).activation == 3
    await stopping


async def test_thousands_of_calls_at_once_are_all_answered_and_counted(served: Served) -> None:
    """The library's limit of waiting calls cancels none of them."""
    count = 3_000
    calls = [served.stub.ListPolicies(pb.ListPoliciesRequest()) for _ in range(count)]
    answers = await asyncio.gather(*calls)
    assert {answer.activation for answer in answers} == {7}
    assert served.handled("ListPolicies", "OK", "") == count


async def test_calls_beyond_the_limit_are_refused_with_a_time_to_retry() -> None:
    """Every call gets an answer; what is refused is counted; health is answered all the same."""
    limit, count = 100, 1_500
    async with serving(max_concurrent_calls=limit) as served:
        calls = [
            asyncio.ensure_future(served.stub.RollbackPolicy(pb.RollbackPolicyRequest()))
            for _ in range(count)
        ]
        handled = ("RollbackPolicy", "RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        await until(lambda: served.handled(*handled) == count - limit, "the rest is refused")
        health_stub = health_pb2_grpc.HealthStub(served.channel)
        await health_stub.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=LIMIT_S)
        served.servicer.may_end.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
        assert len(refused) == count - limit
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert details_of(refused[0])["RetryInfo"].retry_delay.ToNanoseconds() > 0
        assert served.handled("RollbackPolicy", "OK", "") == limit


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_messages_that_are_packed_are_not_unpacked(
    served: Served, algorithm: grpc.Compression
) -> None:
    """A few bytes that would be as many as the limit allows are refused as they are."""
    method: Any = served.channel.unary_unary(f"/{NAME}/ListPolicies")
    request = bytes((0x7A, 0xE8, 0x07)) + bytes(1_000)  # a field that nobody knows
    assert await method(request, timeout=LIMIT_S)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await method(request, timeout=LIMIT_S, compression=algorithm)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "is disabled" in (caught.value.details() or "")
    assert served.handled("ListPolicies", "OK", "") == 1


async def test_port_in_use_is_one_clear_line(served: Served) -> None:
    """A second server on the port does not start, for gRPC and for metrics."""
    with pytest.raises(StartError, match=r"cannot listen on 127\.0\.0\.1:\d+: the port is in use"):
        await build(str(served.server.address), served.servicer, CollectorRegistry())
    with pytest.raises(StartError, match=r"cannot serve metrics on .*in use; name another"):
        start_metrics_server(str(served.server.address), served.registry)


async def test_metrics_are_exposed_over_http(served: Served, free_port: Callable[[], int]) -> None:
    """A scrape shows the calls; after closing, the port is free again."""
    await served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
    metrics = start_metrics_server(f"127.0.0.1:{free_port()}", served.registry)
    url = f"http://{metrics.address}/metrics"

    def scrape() -> str:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            return str(response.read(), "utf-8")

    text = await asyncio.to_thread(scrape)
    assert (
        f'tiercel_rpc_handled_total{{code="OK",method="{NAME}/ListPolicies",reason=""}} 1.0' in text
    )
    await metrics.close()
    start_metrics_server(str(metrics.address), served.registry)


async def test_an_answer_to_a_call_that_has_ended_is_no_bug(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    """The library fails to send it, as the caller is gone: counted so, and no traceback."""
    served.servicer.error = grpc.aio.InternalError("execute_batch")
    call = asyncio.ensure_future(
        served.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
    )
    handled = ("ListPolicies", "CANCELLED", "CLIENT_CANCELLED")
    await until(lambda: served.handled(*handled), "it is counted as a caller that is gone")
    call.cancel()
    assert not [record for record in caplog.records if record.exc_info]
    assert served.handled(*handled) == 1
