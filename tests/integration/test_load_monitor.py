"""The load monitor over real gRPC, with a real Redis and as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.settings import load_settings
from services.load_monitor.app import REDIS_HEALTH, SERVICE, LoadMonitorApp, build_app
from services.load_monitor.coordination import Role
from services.load_monitor.settings import Settings
from tests.conftest import RedisServer
from tests.details import details_of
from tests.unit.services.common.settings_file import PROFILE
from tests.waiting import LIMIT_S, until, until_sync
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

MESH = """
[mesh]
tiers = ["small", "large"]
profile = "p.toml"
quality = "q.toml"
redis_url = "{redis_url}"
[[mesh.tasks]]
name = "reverse"
default_deadline_s = 0.5
[[mesh.tasks]]
name = "dreamy"
default_deadline_s = 0.5
reward = "soft"
[[mesh.endpoints]]
name = "e1"
address = "127.0.0.1:{port}"
tiers = ["small", "large"]
profile = "p.toml"
[load_monitor]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
lame_duck_s = 0.0
grace_s = 2.0
redis_timeout_s = 10.0
router_silence_s = 300.0
"""


def write_settings(folder: Path, redis_url: str, port: int) -> Path:
    """Writes the settings of a mesh whose endpoint does not answer."""
    (folder / "p.toml").write_text(PROFILE)
    path = folder / "tiercel.toml"
    path.write_text(MESH.format(redis_url=redis_url, port=port))
    return path


class Served:
    """A monitor that runs inside the test, and a stub."""

    def __init__(self, app: LoadMonitorApp, address: str) -> None:
        self.app = app
        self.address = address
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: Any = pb_grpc.LoadMonitorServiceStub(self.channel)

    async def state(self) -> state_pb2.SystemState:
        """Returns the newest state."""
        response = await self.stub.GetSystemState(pb.GetSystemStateRequest(), timeout=LIMIT_S)
        state: state_pb2.SystemState = response.state
        return state

    async def wait_for(self, good: Callable[[state_pb2.SystemState], bool]) -> Any:
        """Returns the first watched state that is good."""
        async with asyncio.timeout(LIMIT_S):
            async for response in self.stub.WatchSystemState(pb.WatchSystemStateRequest()):
                if good(response.state):
                    return response.state
        raise AssertionError("the watch ended")


@contextlib.asynccontextmanager
async def serving(path: Path, **overrides: str) -> AsyncIterator[Served]:
    """Runs a monitor with the settings of `path`."""
    dotted = {f"load_monitor.{key}": value for key, value in overrides.items()}
    app = build_app(load_settings(Settings, path=path, environ={}, overrides=dotted))
    async with contextlib.AsyncExitStack() as stack:
        running = await app.start(stack)
        await running.server.start()
        tasks = [asyncio.create_task(task()) for task in running.tasks.values()]
        await running.ready()
        await running.server.set_serving(True)
        served = Served(app, str(running.server.address))
        try:
            yield served
        finally:
            await served.channel.close()
            running.server.end_watches()
            await running.server.stop(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def path(tmp_path: Path, redis_server: RedisServer, free_port: Callable[[], int]) -> Path:
    """A settings file beside a real Redis."""
    return write_settings(tmp_path, redis_server.url, free_port())


def report(sequence: int = 1, **fields: Any) -> pb.ReportTrafficRequest:
    """Returns a report of router `r1`."""
    default: dict[str, Any] = {"router_id": "r1", "epoch": 7, "sequence": sequence}
    load = state_pb2.RouterLoad(**(default | fields))
    return pb.ReportTrafficRequest(load=load)


def endpoint(name: str = "e2", **fields: Any) -> common_pb2.Endpoint:
    """Returns a definition."""
    tiers = [common_pb2.ServedTier(tier="small")]
    default: dict[str, Any] = {"endpoint": name, "address": "127.0.0.1:1", "tiers": tiers}
    return common_pb2.Endpoint(**(default | fields))


async def test_reports_come_out_in_the_state_as_they_went_in(path: Path) -> None:
    """A report is published whole; closing the stream takes the router out."""
    async with serving(path) as served:
        call = served.stub.ReportTraffic()
        candidate = common_pb2.Candidate(tier="small", endpoint="e1")
        loads = [state_pb2.CandidateLoad(candidate=candidate, in_flight_count=3)]
        sent = report(5, loads=loads, arrival_rate_rps=12.5, policy="greedy")
        await call.write(sent)
        unknown = common_pb2.ENDPOINT_HEALTH_UNSPECIFIED
        state = await served.wait_for(
            lambda s: len(s.routers) == 1 and s.endpoints[0].health != unknown
        )
        assert state.routers[0] == sent.load
        assert (state.arrival_rate_short_rps, state.arrival_rate_long_rps) == (12.5, 12.5)
        (seen,) = state.endpoints
        assert seen.health == common_pb2.ENDPOINT_HEALTH_DOWN
        assert seen.endpoint.profile == "p"
        assert seen.endpoint.tiers[1].model_name == "large"
        await call.write(report(4))
        await call.done_writing()
        assert (await call).last_sequence == 5
        await served.wait_for(lambda s: not s.routers)


async def test_watch_resumes_after_the_version_it_is_given(path: Path) -> None:
    """Only newer states come, in order."""
    async with serving(path) as served:
        first = await served.state()
        request = pb.WatchSystemStateRequest(after_version=first.version)
        versions = []
        async for response in served.stub.WatchSystemState(request, timeout=LIMIT_S):
            versions.append(response.state.version)
            if len(versions) == 3:
                break
        assert versions == sorted(set(versions))
        assert versions[0] > first.version


@pytest.mark.parametrize(
    ("method", "request_", "code", "fields"),
    [
        ("ReportTraffic", report(router_id=""), "INVALID_ARGUMENT", ["load.router_id"]),
        ("ReportTraffic", report(0, epoch=0), "INVALID_ARGUMENT", ["load.epoch", "load.sequence"]),
        (
            "ReportTraffic",
            report(arrival_rate_rps=float("nan")),
            "INVALID_ARGUMENT",
            ["load.arrival_rate_rps"],
        ),
        (
            "ReportTraffic",
            report(loads=[state_pb2.CandidateLoad(in_flight_count=-1)]),
            "INVALID_ARGUMENT",
            [
                "load.loads[0].candidate.tier",
                "load.loads[0].candidate.endpoint",
                "load.loads[0].in_flight_count",
            ],
        ),
        (
            "WatchSystemState",
            pb.WatchSystemStateRequest(after_version=-1),
            "INVALID_ARGUMENT",
            ["after_version"],
        ),
        (
            "AddEndpoint",
            pb.AddEndpointRequest(),
            "INVALID_ARGUMENT",
            ["endpoint.endpoint", "endpoint.address", "endpoint.tiers"],
        ),
        (
            "AddEndpoint",
            pb.AddEndpointRequest(
                endpoint=endpoint(tiers=[common_pb2.ServedTier(tier="huge")], address="x")
            ),
            "INVALID_ARGUMENT",
            ["endpoint.address", "endpoint.tiers[0].tier"],
        ),
        (
            "AddEndpoint",
            pb.AddEndpointRequest(
                endpoint=endpoint(address="evil.example:1", metrics_address="10.0.0.1:80")
            ),
            "INVALID_ARGUMENT",
            ["endpoint.address", "endpoint.metrics_address"],
        ),
        ("AddEndpoint", pb.AddEndpointRequest(endpoint=endpoint("e1")), "ALREADY_EXISTS", []),
        ("RemoveEndpoint", pb.RemoveEndpointRequest(), "INVALID_ARGUMENT", ["endpoint"]),
        ("RemoveEndpoint", pb.RemoveEndpointRequest(endpoint="no"), "NOT_FOUND", []),
        (
            "RemoveEndpoint",
            pb.RemoveEndpointRequest(endpoint="e1", drain=Duration(seconds=-1)),
            "INVALID_ARGUMENT",
            ["drain"],
        ),
        ("SetTarget", pb.SetTargetRequest(task="no", target=0.9), "NOT_FOUND", []),
        ("SetTarget", pb.SetTargetRequest(task="no"), "NOT_FOUND", []),
        ("SetTarget", pb.SetTargetRequest(task="dreamy", target=0.9), "INVALID_ARGUMENT", ["task"]),
        (
            "SetTarget",
            pb.SetTargetRequest(task="reverse", target=1.0, reason="x" * 201),
            "INVALID_ARGUMENT",
            ["target", "reason"],
        ),
    ],
)
async def test_bad_input_is_explained(
    shared: Served, method: str, request_: Any, code: str, fields: list[str]
) -> None:
    """Every mistake has its status, its reason, and all its fields in one answer."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call_once(shared, method, request_)
    assert caught.value.code().name == code
    info = details_of(caught.value)["ErrorInfo"]
    assert info.domain == "tiercel"
    for field in fields:
        assert field in (caught.value.details() or "")


async def call_once(served: Served, method: str, request: Any) -> None:
    """Sends one message to a method of any kind and reads one answer."""
    if method == "ReportTraffic":
        call = served.stub.ReportTraffic(iter([request]), timeout=LIMIT_S)
        await call
    elif method == "WatchSystemState":
        await served.stub.WatchSystemState(request, timeout=LIMIT_S).read()
    else:
        await getattr(served.stub, method)(request, timeout=LIMIT_S)


@pytest.fixture
async def shared(path: Path) -> AsyncIterator[Served]:
    """A monitor for tests that only ask."""
    async with serving(path, metrics_listen="") as served:
        yield served


@pytest.mark.parametrize("protocol", ["TRITON", "OPENAI"])
async def test_an_endpoint_joins_on_another_machine_only_by_tls_or_with_leave(
    tmp_path: Path, protocol: str
) -> None:
    """The error names the field, the address, and what is allowed."""
    path = write_settings(tmp_path, "", 1)
    path.write_text(
        path.read_text().replace("[mesh]\n", '[mesh]\nendpoint_addresses = ["10.0.0.*:8000"]\n', 1)
    )
    kind = common_pb2.EndpointProtocol.Value(f"ENDPOINT_PROTOCOL_{protocol}")
    far = endpoint("far", address="10.0.0.6:8000", protocol=kind)
    async with serving(path) as served:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.AddEndpoint(pb.AddEndpointRequest(endpoint=far), timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for part in (
        "endpoint.address: 10.0.0.6:8000 is on another machine",
        "TLS ([mesh.tls])",
        "load_monitor.insecure_open_to_network = true",
    ):
        assert part in (caught.value.details() or "")
    async with serving(path, insecure_open_to_network="true") as served:
        await served.stub.AddEndpoint(pb.AddEndpointRequest(endpoint=far), timeout=LIMIT_S)
        await served.wait_for(lambda state: len(state.endpoints) == 2)


async def test_a_watcher_of_another_monitor_gets_the_newest_state_at_once(path: Path) -> None:
    """Its number comes from another clock and another count, which say nothing here."""
    async with serving(path) as served:
        for ahead in ((await served.state()).version + 3_600_000, 2**63 - 1):
            request = pb.WatchSystemStateRequest(after_version=ahead)
            response = await served.stub.WatchSystemState(request, timeout=LIMIT_S).read()
            assert 0 < response.state.version < ahead


async def test_two_hundred_thousand_empty_loads_are_refused_shortly(path: Path) -> None:
    """The answer fits a header; the monitor goes on."""
    async with serving(path) as served:
        many = report(loads=[state_pb2.CandidateLoad()] * 100_000)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.ReportTraffic(iter([many]), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "load.loads" in (caught.value.details() or "")
        assert (await served.state()).version > 0


async def test_a_second_process_of_a_routers_name_is_refused_and_told(path: Path) -> None:
    """The largest epoch silences nobody; the first router goes on reporting."""
    async with serving(path) as served:
        call = served.stub.ReportTraffic()
        await call.write(report(1))
        await served.wait_for(lambda s: len(s.routers) == 1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.ReportTraffic(iter([report(epoch=2**63 - 1)]), timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        await call.write(report(2))
        await served.wait_for(lambda s: [(r.epoch, r.sequence) for r in s.routers] == [(7, 2)])


@pytest.mark.parametrize(
    "garbage",
    [
        ("SET", "tiercel:v1:topology:current", "x"),
        ("HSET", "tiercel:v1:topology:current", "version", "x", "payload", "{}"),
        ("HSET", "tiercel:v1:topology:current", "version", "9" * 400, "payload", "{}"),
        ("HSET", "tiercel:v1:topology:current", "version", "3", "payload", "\xff"),
        ("SET", "tiercel:v1:system_state:current", "x"),
        ("HSET", "tiercel:v1:system_state:current", "version", "x", "payload", "x"),
        ("HSET", "tiercel:v1:system_state:current", "version", str(2**63), "payload", "x"),
        ("SET", "tiercel:v1:peer_reports:all", "x"),
        ("HSET", "tiercel:v1:peer_reports:all", "m", "\xff\xff"),
        ("SET", "tiercel:v1:lease:load-monitor", "somebody"),
        ("RPUSH", "tiercel:v1:lease:load-monitor", "x"),
    ],
    ids=lambda command: " ".join(command)[:60],
)
async def test_garbage_in_redis_is_gone_on_from(
    path: Path, redis_server: RedisServer, garbage: tuple[str, ...]
) -> None:
    """The monitor leads, publishes, takes endpoints and stores them, whatever stood there."""
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        await client.execute_command(*garbage)  # type: ignore[no-untyped-call]
        async with serving(path) as served:
            await until(
                lambda: served.app.role is Role.LEADER, "the monitor leads although: garbage"
            )
            request = pb.AddEndpointRequest(endpoint=endpoint())
            await served.stub.AddEndpoint(request, timeout=LIMIT_S)
            await served.wait_for(
                lambda s: [e.endpoint.endpoint for e in s.endpoints] == ["e1", "e2"]
            )

            async def is_stored() -> bool:
                state = await client.hget("tiercel:v1:system_state:current", "payload")
                return b"e2" in (state or b"")

            await until(is_stored, "the state is stored")
        assert b"e2" in (await client.hget("tiercel:v1:topology:current", "payload") or b"")


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_stream_that_breaks_takes_no_router_with_it(path: Path, is_cancelled: bool) -> None:
    """The router may be there all the same, with its requests; only one that says so has left."""
    async with serving(path) as served:
        channel = grpc.aio.insecure_channel(served.address)
        call = pb_grpc.LoadMonitorServiceStub(channel).ReportTraffic()
        await call.write(report(arrival_rate_rps=30.0))
        await served.wait_for(lambda s: [r.router_id for r in s.routers] == ["r1"])
        if is_cancelled:
            call.cancel()
        else:
            await channel.close(None)
        name = {"method": f"{SERVICE}/ReportTraffic", "code": "CANCELLED"}
        labels = {**name, "reason": "CLIENT_CANCELLED"}
        counted = served.app._registry.get_sample_value
        await until(
            lambda: counted("tiercel_rpc_handled_total", labels) == 1.0, "the end is counted"
        )
        assert [r.router_id for r in (await served.state()).routers] == ["r1"]
        # Its name is free for a process that comes in its place.
        again = served.stub.ReportTraffic()
        await again.write(report(epoch=8))
        await again.done_writing()
        assert (await again).last_sequence == 1
        await served.wait_for(lambda s: not s.routers)
        await channel.close()


async def test_watches_are_bounded(path: Path) -> None:
    """One more than allowed is refused with a retry time; a closed one makes room."""
    async with serving(path, max_watchers="1") as served:
        first = served.stub.WatchSystemState(pb.WatchSystemStateRequest())
        await first.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.stub.WatchSystemState(pb.WatchSystemStateRequest(), timeout=LIMIT_S).read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()

        async def has_room() -> bool:
            try:
                return bool((await served.wait_for(lambda _: True)).version > 0)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                return False

        await until(has_room, "the closed one has made room")


async def test_endpoint_list_survives_a_restart(path: Path) -> None:
    """What was added and removed while running is still so in the next process."""
    async with serving(path) as served:
        add = pb.AddEndpointRequest(endpoint=endpoint())
        added = await served.stub.AddEndpoint(add, timeout=LIMIT_S)
        again = await served.stub.AddEndpoint(add, timeout=LIMIT_S)
        assert added.topology_version == again.topology_version
        request = pb.RemoveEndpointRequest(endpoint="e1", drain=Duration(seconds=0))
        await served.stub.RemoveEndpoint(request, timeout=LIMIT_S)
        before = await served.wait_for(
            lambda s: [e.endpoint.endpoint for e in s.endpoints] == ["e2"]
        )
    async with serving(path) as served:
        after = await served.state()
        assert [e.endpoint.endpoint for e in after.endpoints] == ["e2"]
        assert after.topology_version == before.topology_version
        assert after.version > before.version


async def test_redis_that_goes_and_comes_back(path: Path, redis_server: RedisServer) -> None:
    """States keep coming; health and metrics say what is wrong, and no longer when it is right."""
    async with serving(path) as served:
        health: Any = health_pb2_grpc.HealthStub(served.channel)

        async def redis_health() -> str:
            request = health_pb2.HealthCheckRequest(service=REDIS_HEALTH)
            status = (await health.Check(request, timeout=LIMIT_S)).status
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))

        async def is_healthy() -> bool:
            return await redis_health() == "SERVING"

        async def is_ill() -> bool:
            return await redis_health() == "NOT_SERVING"

        assert await is_healthy()
        redis_server.stop()
        await until(is_ill, "the missing Redis shows in health")
        version = (await served.state()).version
        await served.wait_for(lambda s: s.version > version)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        answer = await health.Check(request, timeout=LIMIT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        redis_server.start()
        await until(is_healthy, "health is restored")


class Process:
    """A monitor as a child process."""

    def __init__(self, path: Path, ready_file: Path, *arguments: str) -> None:
        self.ready_file = ready_file
        command = [sys.executable, "-m", "services.load_monitor", "--config", str(path)]
        self.popen = subprocess.Popen(
            [*command, "--ready-file", str(ready_file), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def addresses(self) -> dict[str, str]:
        """Returns the bound addresses once it serves."""
        until_sync(
            lambda: self.ready_file.exists() or self.popen.poll() is not None, "the monitor serves"
        )
        assert self.ready_file.exists(), self.end()
        found: dict[str, str] = json.loads(self.ready_file.read_text())["addresses"]
        return found

    def end(self) -> tuple[int, str, str]:
        """Waits for its end; returns exit code, output and error output."""
        out, err = self.popen.communicate(timeout=LIMIT_S)
        return self.popen.returncode, out, err


Start = Callable[..., Process]


@pytest.fixture
def start(path: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts monitors as processes; whatever is left is killed."""
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        ready_file = tmp_path / f"ready-{len(started)}.json"
        process = Process(path, ready_file, *arguments)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate(timeout=15)


async def read_versions(watch: Any, versions: list[int]) -> None:
    """Reads a watch to its end."""
    while True:
        versions.append((await watch.read()).state.version)


async def test_signal_drains_and_a_second_monitor_takes_over(start: Start) -> None:
    """SIGTERM ends open watches with UNAVAILABLE and exit code 0; the follower then leads."""
    first = start()
    first_address = await asyncio.to_thread(first.addresses)
    second = start()
    second_address = await asyncio.to_thread(second.addresses)
    async with (
        grpc.aio.insecure_channel(first_address["grpc"]) as one,
        grpc.aio.insecure_channel(second_address["grpc"]) as two,
    ):
        stub_one: Any = pb_grpc.LoadMonitorServiceStub(one)
        stub_two: Any = pb_grpc.LoadMonitorServiceStub(two)
        watch_one = stub_one.WatchSystemState(pb.WatchSystemStateRequest(), timeout=LIMIT_S)
        state = (await watch_one.read()).state
        leader, versions = state.monitor_id, [state.version]
        watch_two = stub_two.WatchSystemState(pb.WatchSystemStateRequest(), timeout=LIMIT_S)
        assert (await watch_two.read()).state.monitor_id == leader
        first.popen.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_versions(watch_one, versions)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        info = details_of(caught.value)["ErrorInfo"]
        assert info.reason == "DRAINING"
        assert not first.ready_file.exists()
        while (state := (await watch_two.read()).state).monitor_id == leader:
            pass
        assert state.version > versions[-1]
    code, out, err = await asyncio.to_thread(first.end)
    assert (code, out) == (0, "")
    assert "Traceback" not in err


def test_metrics_of_a_process(start: Start) -> None:
    """The page shows the monitor's own gauges."""
    addresses = start().addresses()
    lines = {
        'tiercel_monitor_role{role="leader"} 1.0',
        'tiercel_endpoint_health{endpoint="e1",health="down"} 1.0',
        'tiercel_tier_ready{endpoint="e1",tier="small"} 0.0',
        "tiercel_monitor_routers 0.0",
    }

    def are_shown() -> bool:
        url = f"http://{addresses['metrics']}/metrics"
        with urllib.request.urlopen(url, timeout=LIMIT_S) as response:
            return lines.issubset(response.read().decode().splitlines())

    until_sync(are_shown, "the page shows every line")


def test_wrong_settings_end_with_code_2_and_every_line(start: Start) -> None:
    """No traceback; each mistake on a line."""
    code, _, err = start("--set", "load_monitor.grace_s=soon", "--set", "mesh.tiers=[]").end()
    assert code == 2
    assert "command line: load_monitor.grace_s: input should be a valid number" in err
    assert "command line: mesh.tiers: " in err
    assert "Traceback" not in err


def test_port_in_use_is_one_line(start: Start) -> None:
    """The second process on a port says so and ends with code 1."""
    address = start().addresses()["grpc"]
    code, _, err = start("--listen", address).end()
    assert code == 1
    lines = [line for line in err.splitlines() if "cannot listen" in line]
    assert lines == [f"load-monitor: cannot listen on {address}: the port is in use"]
    assert "Traceback" not in err


def test_second_signal_ends_at_once(start: Start) -> None:
    """Who is in a hurry does not wait for the drain."""
    process = start("--set", "load_monitor.lame_duck_s=60")
    process.addresses()
    process.popen.send_signal(signal.SIGINT)
    until_sync(lambda: not process.ready_file.exists(), "the drain begins")
    process.popen.send_signal(signal.SIGINT)
    assert process.end()[0] == 128 + signal.SIGINT


async def test_a_stop_does_not_wait_for_a_router_that_watches_and_reports(path: Path) -> None:
    """Both calls end at once, with a word that sends the router to another monitor."""
    app = build_app(load_settings(Settings, path=path, environ={}))
    async with contextlib.AsyncExitStack() as stack:
        running = await app.start(stack)
        await running.server.start()
        tasks = [asyncio.create_task(task()) for task in running.tasks.values()]
        async with grpc.aio.insecure_channel(str(running.server.address)) as channel:
            stub: Any = pb_grpc.LoadMonitorServiceStub(channel)
            reporting = stub.ReportTraffic()
            await reporting.write(report())
            watching = stub.WatchSystemState(pb.WatchSystemStateRequest())
            await watching.read()
            running.server.end_watches()
            await asyncio.wait_for(running.server.stop(100 * LIMIT_S), LIMIT_S)
            assert await watching.code() is grpc.StatusCode.UNAVAILABLE
            assert await reporting.code() is grpc.StatusCode.UNAVAILABLE
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
