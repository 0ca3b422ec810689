"""A whole mesh inside one process, for inputs that try to take it down: every server is real.

Router, monitor and trainer know each other, Redis is real, and an endpoint answers at once. Bounds
of what they keep are small, so that a leak shows within some thousand calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2 as kserve

from router.dqn.snapshot import Snapshot, save_snapshot
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.clock import SystemClock
from services.common.lifecycle import Application, Running
from services.common.log import get_logger
from services.common.mesh_settings import load_mesh_files
from services.common.settings import load_settings
from services.common.telemetry import Telemetry
from services.load_monitor.app import build_app as build_monitor
from services.load_monitor.settings import Settings as MonitorSettings
from services.router_inference.app import RouterInference
from services.router_inference.doors.envoy.convert import SERVED, SUBSET
from services.router_inference.reconnect import END_OF_STREAM
from services.router_inference.settings import Settings as RouterSettings
from services.trainer.app import build_app as build_trainer
from services.trainer.settings import Settings as TrainerSettings
from tests.fakes.triton import FakeTriton
from tests.kserve_requests import infer_request
from tests.waiting import until
from tiercel.common.v1 import common_pb2
from tiercel.envoy.v3 import external_processor_pb2 as envoy_pb
from tiercel.envoy.v3 import external_processor_pb2_grpc as envoy_grpc
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc
from trainer.learning.network import initial_weights

PROFILE = """
name = "tiny"
source = "assumed"
[tiers.small]
step_s = 0.0001
per_sequence_s = 0.000001
per_prompt_token_s = 0.0000001
[tiers.large]
step_s = 0.001
per_sequence_s = 0.00001
per_prompt_token_s = 0.000001
"""
QUALITY = """
name = "tiny"
source = "assumed"
[quality.echo]
small = 0.5
large = 1.0
[quality.sort]
small = 0.25
large = 1.0
"""
MESH = """
[mesh]
tiers = ["small", "large"]
profile = "profile.toml"
quality = "quality.toml"
redis_url = "{redis_url}"
load_monitor_address = "{monitor}"
trainer_address = "{trainer}"
[[mesh.tasks]]
name = "echo"
default_deadline_s = 1.0
[[mesh.tasks]]
name = "sort"
default_deadline_s = 1.0
reward = "soft"
[[mesh.endpoints]]
name = "e0"
address = "{tier}"
http_address = "127.0.0.1:1"
tiers = ["small", "large"]
[load_monitor]
listen = "127.0.0.1:0"
metrics_listen = ""
max_endpoints = 50
max_routers = 50
router_silence_s = 1.0
[trainer]
listen = "127.0.0.1:0"
metrics_listen = ""
data_dir = "data"
poll_interval_s = 0.2
gate_seeds = 1
simulated_budget_s = 3.0
min_transitions = 100
[router_inference]
listen = "127.0.0.1:0"
envoy_listen = "127.0.0.1:0"
envoy_reads_bodies = true
metrics_listen = ""
policy = "price"
lease_s = 2.0
ticket_key = "a key of the fuzzer"
explanation_memory_bytes = 500000
feedback_memory_count = 500
max_leases = 500
max_leases_per_client = 500
"""
SLOW = frozenset({"StartTraining", "PromotePolicy"})
"""Methods that start processes which learn or simulate for seconds."""
SERVICES = ("router-inference", "router-inference's picker", "load-monitor", "trainer")
"""Names of the services."""
_FIRST_STATE_S = 60.0


class Endpoint(FakeTriton):
    """An endpoint that has statistics, and none to tell."""

    async def ModelStatistics(self, request: Any, context: Any) -> kserve.ModelStatisticsResponse:
        """Says nothing of any model."""
        return kserve.ModelStatisticsResponse()


@dataclass
class Served:
    """One service of the mesh.

    Attributes:
        name: its process's name.
        channel: a channel to it.
        running: what its application handed over.
        methods: every method that it serves.
        good: sends it a good request; raises if that is not answered well.
        in_flight: tells how much it holds of callers that are gone.
    """

    name: str
    channel: grpc.aio.Channel
    running: Running
    methods: Sequence[MethodDescriptor]
    good: Callable[[], Awaitable[None]]
    in_flight: Callable[[], int]


@dataclass
class Mesh:
    """The mesh.

    Attributes:
        services: its services by name.
        words: names that mean something to it.
        blobs: bytes that do.
        seeds: good requests by a method's full name; one that has none is made from nothing.
        tidy: ends what inputs began: added endpoints, training runs, leases.
    """

    services: dict[str, Served] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    seeds: dict[str, list[Message]] = field(default_factory=dict)
    tidy: Callable[[], Awaitable[None]] = lambda: asyncio.sleep(0)


def snapshot(seed: int = 0) -> bytes:
    """Returns a snapshot of random weights that follows this build's schema."""
    names = tuple(feature.name for feature in FEATURES)
    weights = initial_weights(FEATURE_COUNT, 8, np.random.default_rng(seed))
    return save_snapshot(Snapshot(weights, SCHEMA, names))


@asynccontextmanager
async def running_mesh(folder: Path, redis_url: str) -> AsyncIterator[Mesh]:
    """Runs a mesh until the block ends.

    Args:
        folder: for its files.
        redis_url: its Redis.
    """
    (folder / "profile.toml").write_text(PROFILE)
    (folder / "quality.toml").write_text(QUALITY)
    path = folder / "tiercel.toml"
    async with AsyncExitStack() as stack:
        triton = await Endpoint().start()
        stack.push_async_callback(triton.stop)
        mesh = Mesh()
        addresses = {"monitor": "", "trainer": "", "tier": triton.address, "redis_url": redis_url}

        def read(settings: Any) -> Any:
            path.write_text(MESH.format(**addresses))
            return load_settings(settings, path=path, environ={})

        monitor_app = build_monitor(read(MonitorSettings))
        monitor, monitor_at = await _start(stack, monitor_app)
        addresses["monitor"] = str(monitor.server.address)
        trainer, trainer_at = await _start(stack, build_trainer(read(TrainerSettings)))
        addresses["trainer"] = str(trainer.server.address)
        settings = read(RouterSettings)
        router_app = RouterInference(
            settings=settings,
            files=load_mesh_files(settings.mesh),
            clock=SystemClock(),
            log=get_logger("services.router_inference"),
            telemetry=Telemetry(None, random.Random(1)),
        )
        router, router_at = await _start(stack, router_app)
        core = router_app.core
        assert core is not None
        router_stub: Any = router_grpc.RouterInferenceServiceStub(router_at)
        monitor_stub: Any = monitor_grpc.LoadMonitorServiceStub(monitor_at)
        trainer_stub: Any = trainer_grpc.TrainerServiceStub(trainer_at)

        async def generate() -> None:
            spec = router_pb.GenerationSpec(prompt="abc", task="echo", tier="small")
            spec.deadline.FromSeconds(20)
            request = router_pb.GenerateRequest(spec=spec)
            answer = await router_stub.Generate(request, timeout=20.0)
            assert answer.text == "abc", answer

        picker_at = _channel(str(router.server.addresses["envoy"]))
        stack.push_async_callback(picker_at.close)

        async def exchange() -> None:
            call: Any = envoy_grpc.ExternalProcessorStub(picker_at).Process(timeout=20.0)
            messages = parts()[:3]
            for header in messages[0].request_headers.headers.headers:  # type: ignore[attr-defined]
                if header.key == "x-tiercel-deadline-ms":
                    header.raw_value = b"20000"  # as `generate` has: a busy machine is no finding
            for message, kind in zip(messages, ("request", "response", "trailers"), strict=True):
                await call.write(message)
                answer = await call.read()
                assert answer is not END_OF_STREAM, kind
                assert answer.WhichOneof("response") != "immediate_response", answer
            await call.done_writing()
            assert await call.read() is END_OF_STREAM

        async def state() -> None:
            answer = await monitor_stub.GetSystemState(monitor_pb.GetSystemStateRequest())
            names = {each.endpoint.endpoint for each in answer.state.endpoints}
            assert "e0" in names, names

        async def policies() -> None:
            answer = await trainer_stub.ListPolicies(trainer_pb.ListPoliciesRequest())
            assert {"price", "greedy"} <= {each.policy for each in answer.policies}, answer

        def router_load() -> int:
            return core.leases.open_count + len(core.view.load.ledger)

        parts_of_services = (
            (router, router_at, generate, router_load),
            (router, picker_at, exchange, router_load),
            (monitor, monitor_at, state, lambda: 0),
            (trainer, trainer_at, policies, lambda: 0),
        )
        for name, part in zip(SERVICES, parts_of_services, strict=True):
            running, channel, good, in_flight = part
            methods = await _methods(channel)
            mesh.services[name] = Served(name, channel, running, methods, good, in_flight)

        first = await monitor_stub.GetSystemState(monitor_pb.GetSystemStateRequest())
        own = monitor_pb.AddEndpointRequest(endpoint=first.state.endpoints[0].endpoint)

        async def has_own_endpoint_alone() -> bool:
            answer = await monitor_stub.GetSystemState(monitor_pb.GetSystemStateRequest())
            found = {each.endpoint.endpoint for each in answer.state.endpoints}
            for name in found - {"e0"}:
                await _ignoring(
                    monitor_stub.RemoveEndpoint(monitor_pb.RemoveEndpointRequest(endpoint=name))
                )
            await _ignoring(monitor_stub.AddEndpoint(own))
            known = {target.endpoint for target in core.view.fleet.targets}
            return found == known == {"e0"}

        async def tidy() -> None:
            await trainer.flush()
            await until(has_own_endpoint_alone, "the mesh has its own endpoint alone", 60.0)

        mesh.tidy = tidy
        mesh.words = [
            "echo", "sort", "small", "large", "e1", triton.address, "127.0.0.1:1", "price",
            "greedy", "static-small", "dqn", "dqn_paper", "r1", "tiny", "id-1", "r1@x", SCHEMA,
            "tiercel", "tiercel_unary", "1", "text_input", "stream", "sampling_parameters", "BYTES",
            "BOOL", "text_output", "timeout", "tiercel_task", "tiercel_deadline_ms", "max_tokens",
            "shared_memory_region", "triton_enable_empty_final_response", "first_token",
        ]  # fmt: skip
        await until(lambda: core.view.fleet.targets, "the router knows its tiers", _FIRST_STATE_S)
        await _learn(mesh, router_stub)
        yield mesh


async def _ignoring(call: Any) -> None:
    """Awaits a call; an error is an answer too."""
    with contextlib.suppress(grpc.aio.AioRpcError):
        await call


async def _start(
    stack: AsyncExitStack, application: Application
) -> tuple[Running, grpc.aio.Channel]:
    """Starts an application as `services.common.lifecycle` does; the stack ends it."""
    inner = await stack.enter_async_context(AsyncExitStack())
    running = await application.start(inner)
    await running.server.start()
    tasks = [
        asyncio.ensure_future(running.supervisor.keep(name, task))
        for name, task in running.tasks.items()
    ]
    channel = _channel(str(running.server.address))

    async def end() -> None:
        running.server.end_watches()
        await channel.close()
        await running.server.stop(0.0)
        await running.flush()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(end)
    await asyncio.wait_for(running.ready(), _FIRST_STATE_S)
    await running.server.set_serving(True)
    return running, channel


def _channel(address: str) -> grpc.aio.Channel:
    """Returns a channel that takes messages of any size."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ],
    )


async def _methods(channel: grpc.aio.Channel) -> list[MethodDescriptor]:
    """Returns the methods of every service that a server says it serves."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    await call.done_writing()
    pool: Any = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    names = sorted(each.name for each in answer.list_services_response.service)
    return [m for name in names for m in pool.FindServiceByName(name).methods]


def request_type(method: MethodDescriptor) -> type[Message]:
    """Returns the class of a method's requests."""
    return message_factory.GetMessageClass(method.input_type)


def response_type(method: MethodDescriptor) -> type[Message]:
    """Returns the class of a method's responses."""
    return message_factory.GetMessageClass(method.output_type)


async def _learn(mesh: Mesh, router: Any) -> None:
    """Makes good requests, some of which need what the mesh has answered."""
    spec = router_pb.GenerationSpec(
        prompt="ECHO:abc=", task="echo", max_output_tokens=4, request_id="id-1", quality_floor=0.1
    )
    spec.conversation_id = "talk"
    spec.deadline.FromMilliseconds(500)
    spec.sampling.temperature = 0.5
    spec.sampling.seed = 7
    route = router_pb.RouteRequest(task="sort", prompt_token_count=20, request_id="id-2")
    route.deadline.FromMilliseconds(300)
    routed = await router.Route(route)
    report = router_pb.ReportOutcomeRequest(
        ticket=routed.ticket, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=3
    )
    report.latency.FromMilliseconds(20)
    late = router_pb.ReportOutcomeRequest(request_id="id-1", quality=0.5)
    mesh.blobs = [snapshot(), routed.ticket, b"", np.ones(2, "<f4").tobytes()]
    endpoint = common_pb2.Endpoint(
        endpoint="e1", address="127.0.0.1:1", device="gpu1", speed=1.0, profile="tiny"
    )
    endpoint.tiers.add(tier="small", model_name="small-model")
    drop = trainer_pb.DropReplayRequest()
    drop.since_time.FromSeconds(1_700_000_000)
    drop.until_time.FromSeconds(1_700_000_100)
    remove = monitor_pb.RemoveEndpointRequest(endpoint="e1")
    remove.drain.FromSeconds(0)
    asked: dict[str, Any] = {
        "prompt": b"ECHO:abc=",
        "sampling": b'{"max_tokens": 4, "temperature": 0.5, "seed": 7}',
        "request_id": "id-3",
        "outputs": ("text_output",),
        "parameters": {
            "tiercel_task": "echo",
            "tiercel_deadline_ms": 500,
            "tiercel_quality_floor": 0.1,
            "tiercel_slo_kind": "first_token",
            "tiercel_conversation_id": "talk",
            "timeout": 400_000,
            "priority": 1,
            "sequence_id": "a",
            "triton_enable_empty_final_response": True,
        },
    }
    promote = {"policy": "greedy", "expected_activation": 0}
    seeds: Mapping[str, Sequence[Message]] = {
        "Generate": [router_pb.GenerateRequest(spec=spec)],
        "GenerateStream": [router_pb.GenerateStreamRequest(spec=spec)],
        "Route": [route],
        "ReportOutcome": [report, late],
        "ExplainDecision": [router_pb.ExplainDecisionRequest(request_id="id-1")],
        "UsePolicy": [router_pb.UsePolicyRequest(policy="greedy")],
        "ReportTraffic": [monitor_pb.ReportTrafficRequest(load=each) for each in loads()],
        "WatchSystemState": [
            monitor_pb.WatchSystemStateRequest(router_id="r1", epoch=7, after_version=1),
            monitor_pb.WatchSystemStateRequest(),
        ],
        "AddEndpoint": [monitor_pb.AddEndpointRequest(endpoint=endpoint)],
        "RemoveEndpoint": [remove],
        "StartTraining": [
            trainer_pb.StartTrainingRequest(step_count=5, seed=1),
            trainer_pb.StartTrainingRequest(mode=trainer_pb.TRAINING_MODE_SIMULATED, step_count=1),
        ],
        "DropReplay": [drop],
        "PublishPolicy": [
            trainer_pb.PublishPolicyRequest(snapshot=snapshot(n), description="of the fuzzer")
            for n in range(2)
        ],
        "GetPolicy": [trainer_pb.GetPolicyRequest(policy="price")],
        "PromotePolicy": [trainer_pb.PromotePolicyRequest(**promote)],  # type: ignore[arg-type]
        "RollbackPolicy": [trainer_pb.RollbackPolicyRequest(reason="because")],
        "ModelInfer": [infer_request("tiercel", **asked)],
        "ModelStreamInfer": [
            infer_request("tiercel", stream=True, **asked),
            infer_request("small", stream=True, typed=True, **asked),
        ],
        **{
            name: [getattr(kserve, f"{name}Request")(name="small", version="1")]
            for name in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")
        },
        "Process": list(parts()),
        "ServerReflectionInfo": [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(
                file_containing_symbol="tiercel.common.v1.Endpoint"
            ),
        ],
    }
    for served in mesh.services.values():
        for method in served.methods:
            found = seeds.get(method.name, [request_type(method)()])
            mesh.seeds[method.full_name] = list(found)


def parts() -> list[Message]:
    """Returns what a gateway tells of an exchange, in its order, and bodies."""
    begin, answered = envoy_pb.ProcessingRequest(), envoy_pb.ProcessingRequest()
    for key, text in (
        (":path", "/v2/models/tiercel/generate_stream"), (":method", "POST"),
        ("content-length", "40"), ("x-tiercel-task", "echo"), ("x-tiercel-deadline-ms", "900"),
        ("x-tiercel-quality-floor", "0.1"), ("x-request-id", "id-3"),
        ("x-tiercel-conversation-id", "talk"),
    ):  # fmt: skip
        begin.request_headers.headers.headers.add(key=key, raw_value=text.encode())
    name, subset = "envoy.filters.http.ext_proc", "envoy.lb.subset_hint"
    begin.attributes[name].update({"source.address": "10.0.0.1:1"})
    begin.metadata_context.filter_metadata[subset].update({SUBSET: ["127.0.0.1:1"]})
    answered.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    answered.metadata_context.filter_metadata["envoy.lb"].update({SERVED: "127.0.0.1:1"})
    ended = envoy_pb.ProcessingRequest(response_trailers=envoy_pb.HttpTrailers())
    told = envoy_pb.ProcessingRequest(response_trailers=envoy_pb.HttpTrailers())
    for key, text in (
        ("tiercel-answer-status", "200"), ("tiercel-answer-first-byte-us", "5000"),
        ("tiercel-answer-served", "127.0.0.1:1"),
    ):  # fmt: skip
        told.response_trailers.trailers.headers.add(key=key, raw_value=text.encode())
    bodies = [
        envoy_pb.ProcessingRequest(request_body=envoy_pb.HttpBody(body=b"abc")),
        envoy_pb.ProcessingRequest(response_body=envoy_pb.HttpBody(end_of_stream=True)),
    ]
    chat = envoy_pb.ProcessingRequest()
    chat.CopyFrom(begin)
    chat.request_headers.headers.headers[0].raw_value = b"/v1/chat/completions"
    chat.protocol_config.request_body_mode = envoy_pb.BUFFERED
    duplex = envoy_pb.ProcessingRequest()
    duplex.CopyFrom(chat)
    duplex.protocol_config.request_body_mode = envoy_pb.FULL_DUPLEX_STREAMED
    asked = {"model": "tiercel/echo", "max_tokens": 4, "metadata": {"tiercel_deadline_ms": "900"}}
    data = json.dumps(asked | {"messages": [{"role": "user", "content": "a"}]}).encode()
    whole = envoy_pb.HttpBody(body=data, end_of_stream=True)
    bodies += [chat, duplex, envoy_pb.ProcessingRequest(request_body=whole)]
    return [begin, answered, ended, told, *bodies]


def loads() -> list[state_pb.RouterLoad]:
    """Returns reports of a router: loads by name, then packed."""
    named = state_pb.RouterLoad(router_id="r1", epoch=7, sequence=1, arrival_rate_rps=10.0)
    named.report_time.FromSeconds(1_700_000_000)
    named.policy = "price"
    load = named.loads.add(in_flight_count=2, waiting_prompt_token_count=30)
    load.candidate.tier, load.candidate.endpoint = "small", "e0"
    named.outcomes.offered_count = 5
    named.outcomes.on_time_count = 5
    named.tier_outcomes.add(tier="small").outcomes.offered_count = 5
    rated = named.task_ratings.add(task="copa").tiers
    rated.add(tier="small", rating_count=4, mean=0.5, mean_square=0.3)
    packed = state_pb.RouterLoad(router_id="r1", epoch=7, sequence=2)
    for tier in ("small", "large"):
        packed.candidates.add(tier=tier, endpoint="e0")
    row = np.ones(2, "<f4").tobytes()
    packed.packed_loads.in_flight_counts = row
    packed.packed_loads.waiting_prompt_token_counts = row
    packed.packed_loads.remaining_output_token_counts = row
    later = state_pb.RouterLoad()
    later.CopyFrom(packed)
    later.ClearField("candidates")
    later.sequence = 3
    return [named, packed, later]
