"""Who may call, over the wire: clients by keys, services by certificates, and where."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as kserve

from services.common.access.keys import new_key, write_keys
from services.common.access.roles import Role
from services.common.access.tls import read_certificates
from services.common.clock import SystemClock
from services.common.settings import load_settings
from services.load_monitor.app import LoadMonitorApp
from services.load_monitor.settings import Settings as MonitorSettings
from services.local.certificates import make_certificates
from tests import certificates
from tests.details import details_of
from tests.fakes.router_process import mesh_toml, running_router
from tests.fakes.triton import FakeTriton
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient, NotAllowedError
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.load_monitor.v1 import system_state_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc


@pytest_asyncio.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    """A fake Triton."""
    fake = await FakeTriton().start()
    yield fake
    await fake.stop()


def with_keys(toml: str, path: Path) -> str:
    """Adds a file of keys to a settings file."""
    access = f'[mesh.access]\nkeys_file = "{path}"\n[[mesh.tasks]]'
    toml = toml.replace("[[mesh.tasks]]", access, 1)
    return toml.replace("lame_duck_s", 'operate_listen = "127.0.0.1:0"\nlame_duck_s', 1)


async def reason_of(call: Any) -> tuple[str, str]:
    """Returns code and reason of a call that is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code().name, details_of(caught.value)["ErrorInfo"].reason


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that shows a key."""
    return (("authorization", f"Bearer {key}"),)


async def test_a_client_needs_a_key_until_it_is_revoked(tmp_path: Path, triton: FakeTriton) -> None:
    """No key, a wrong one and a revoked one are refused; each call is counted with its reason."""
    path = tmp_path / "keys.toml"
    (shop, key), (board, reader) = new_key("shop", [Role.DATA]), new_key("board", [Role.READ])
    write_keys(path, [shop, board])
    toml = with_keys(mesh_toml([("e0", triton.address)], deadline_s=LIMIT_S), path)
    async with running_router(tmp_path, toml) as router:
        request = pb.GenerateRequest(spec=pb.GenerationSpec(prompt="hello", task="piqa"))
        for metadata, expected in (
            ((), ("UNAUTHENTICATED", "MISSING_CREDENTIALS")),
            (bearer(key[:-1]), ("UNAUTHENTICATED", "BAD_CREDENTIALS")),
            (bearer(reader), ("PERMISSION_DENIED", "ROLE_MISSING")),
        ):
            call = router.stub.Generate(request, metadata=metadata, timeout=LIMIT_S)
            assert await reason_of(call) == expected
        assert not triton.received
        async with AsyncClient(router.address, api_key=key) as client:
            answer = await client.generate("hello", task="piqa")
            await client.report_outcome(request_id=answer.request_id, quality=1.0)
            write_keys(path, [board])

            async def is_refused() -> bool:
                try:
                    await client.generate("hello", task="piqa")
                except NotAllowedError as error:
                    return error.reason == "BAD_CREDENTIALS"
                return False

            await until(is_refused, "the revoked key is refused")
        labels = {
            "method": "tiercel.router_inference.v1.RouterInferenceService/Generate",
            "code": "UNAUTHENTICATED",
            "reason": "MISSING_CREDENTIALS",
        }
        assert router.app.registry.get_sample_value("tiercel_rpc_handled_total", labels) == 1.0


async def test_strangers_are_refused_before_what_they_send_is_read(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """A call without a key ends though no message of it comes, and one of health goes on."""
    path = tmp_path / "keys.toml"
    shop, key = new_key("shop", [Role.DATA])
    write_keys(path, [shop])
    toml = with_keys(mesh_toml([("e0", triton.address)], deadline_s=LIMIT_S), path)
    async with (
        running_router(tmp_path, toml) as router,
        grpc.aio.insecure_channel(router.address) as channel,
    ):
        method = "/tiercel.router_inference.v1.RouterInferenceService/Generate"
        for metadata, reason in (
            ((), "MISSING_CREDENTIALS"),
            (bearer(key[:-1]), "BAD_CREDENTIALS"),
        ):
            # As a stream, which begins without a message.
            call: Any = channel.stream_unary(method)(metadata=metadata, timeout=LIMIT_S)
            assert await reason_of(call) == ("UNAUTHENTICATED", reason)
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        await check(b"", timeout=LIMIT_S)


async def test_clients_of_triton_show_keys_by_tls_too(tmp_path: Path, triton: FakeTriton) -> None:
    """An unmodified one, by its own options; its limits are those of its name."""
    path = tmp_path / "keys.toml"
    (shop, key), (board, reader) = new_key("shop", [Role.DATA]), new_key("board", [Role.READ])
    write_keys(path, [shop, board])
    own = certificates.tls_settings("router-inference")
    # The next request is a minute away, however slow this machine is.
    limits = '[[router_inference.clients]]\nname = "shop"\nrate_rps = 0.015\n'
    own_lines = 'default_task = "piqa"'
    toml = mesh_toml([("e0", triton.address)], router=own_lines, deadline_s=LIMIT_S)
    toml = with_keys(toml, path)
    toml = toml.replace(
        "[mesh.access]",
        f'[mesh.tls]\nroot_certificates = "{own.root_certificates}"\n'
        f'certificate = "{own.certificate}"\nkey = "{own.key}"\ntriton = false\n[mesh.access]',
        1,
    )
    prompt = kserve.InferInput("text_input", [1], "BYTES")
    prompt.set_data_from_numpy(np.array([b"hello"], dtype=np.object_))

    def use(address: str) -> None:
        with kserve.InferenceServerClient(
            address, ssl=True, root_certificates=own.root_certificates
        ) as client:
            assert client.is_server_ready()
            shown, read = ({"authorization": f"Bearer {each}"} for each in (key, reader))
            assert client.is_model_ready("tiercel", headers=shown)
            for headers, what in (
                (None, "UNAUTHENTICATED"),
                ({"authorization": "Bearer x"}, "UNAUTHENTICATED"),
                (read, "PERMISSION_DENIED"),
            ):
                with pytest.raises(kserve.InferenceServerException) as caught:
                    client.infer("tiercel", [prompt], headers=headers)
                assert caught.value.status() == f"StatusCode.{what}"
            client.infer("tiercel", [prompt], headers=shown)
            with pytest.raises(kserve.InferenceServerException, match="client rate"):
                client.infer("tiercel", [prompt], headers=shown)
            assert client.get_inference_statistics("tiercel", headers=read)
            with pytest.raises(kserve.InferenceServerException, match="it needs the role read"):
                client.get_inference_statistics("tiercel", headers=shown)

    async with running_router(tmp_path, toml + limits) as router:
        await asyncio.to_thread(use, router.address)
    assert len(triton.received) == 1


async def test_tickets_and_feedback_are_a_clients_not_an_addresss(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """Two clients behind one address have their own tickets; one's feedback is not the other's."""
    path = tmp_path / "keys.toml"
    (one, first), (two, second) = new_key("one", [Role.DATA]), new_key("two", [Role.DATA])
    write_keys(path, [one, two])
    toml = with_keys(mesh_toml([("e0", triton.address)], deadline_s=LIMIT_S), path)
    toml = toml.replace("lame_duck_s", "max_leases_per_client = 1\nlame_duck_s", 1)
    async with running_router(tmp_path, toml) as router:
        request = pb.RouteRequest(task="piqa", prompt_token_count=3)
        for key in (first, second):
            await router.stub.Route(request, metadata=bearer(key), timeout=LIMIT_S)
            call = router.stub.Route(request, metadata=bearer(key), timeout=LIMIT_S)
            assert await reason_of(call) == ("RESOURCE_EXHAUSTED", "CLIENT_FULL")
        spec = pb.GenerationSpec(prompt="hello", task="piqa", request_id="mine")
        generate = pb.GenerateRequest(spec=spec)
        await router.stub.Generate(generate, metadata=bearer(first), timeout=LIMIT_S)
        report = pb.ReportOutcomeRequest(request_id="mine", quality=0.0)
        call = router.stub.ReportOutcome(report, metadata=bearer(second), timeout=LIMIT_S)
        assert (await reason_of(call))[0] == "NOT_FOUND"
        await router.stub.ReportOutcome(report, metadata=bearer(first), timeout=LIMIT_S)


@pytest.mark.parametrize(
    ("roles", "reason"),
    [([Role.DATA], "TICKET_NOT_OWN"), ([Role.DATA, Role.REPORT], "")],
)
async def test_a_ticket_is_closed_by_its_client_or_by_the_mesh(
    tmp_path: Path, triton: FakeTriton, roles: list[Role], reason: str
) -> None:
    """Another client that got hold of it may not; one that reports for routers may."""
    path = tmp_path / "keys.toml"
    (one, first), (two, second) = new_key("one", [Role.DATA]), new_key("two", roles)
    write_keys(path, [one, two])
    toml = with_keys(mesh_toml([("e0", triton.address)], deadline_s=LIMIT_S), path)
    async with running_router(tmp_path, toml) as router:
        request = pb.RouteRequest(task="piqa", prompt_token_count=3)
        routed = await router.stub.Route(request, metadata=bearer(first), timeout=LIMIT_S)
        status = common_pb2.OUTCOME_STATUS_CANCELLED
        report = pb.ReportOutcomeRequest(ticket=routed.ticket, status=status)
        call = router.stub.ReportOutcome(report, metadata=bearer(second), timeout=LIMIT_S)
        if reason:
            assert await reason_of(call) == ("PERMISSION_DENIED", reason)
            call = router.stub.ReportOutcome(report, metadata=bearer(first), timeout=LIMIT_S)
        await call


async def test_operating_calls_have_an_address_of_their_own(
    tmp_path: Path, triton: FakeTriton
) -> None:
    """At the clients' address even an operator is refused, and told where to call."""
    path = tmp_path / "keys.toml"
    operator, key = new_key("operator", [Role.OPERATE])
    shop, other = new_key("shop", [Role.DATA])
    write_keys(path, [operator, shop])
    toml = with_keys(mesh_toml([("e0", triton.address)], deadline_s=LIMIT_S), path)
    async with running_router(tmp_path, toml) as router:
        use = pb.UsePolicyRequest(policy="greedy")
        call = router.stub.UsePolicy(use, metadata=bearer(key), timeout=LIMIT_S)
        assert await reason_of(call) == ("PERMISSION_DENIED", "OPERATE_PORT")
        async with grpc.aio.insecure_channel(router.addresses["operate"]) as channel:
            stub: Any = pb_grpc.RouterInferenceServiceStub(channel)
            call = stub.UsePolicy(use, metadata=bearer(other), timeout=LIMIT_S)
            assert await reason_of(call) == ("PERMISSION_DENIED", "ROLE_MISSING")
            reply = await stub.UsePolicy(use, metadata=bearer(key), timeout=LIMIT_S)
            assert reply.policy == "greedy"


def monitor(folder: Path, *, shared: bool = False) -> LoadMonitorApp:
    """Returns a monitor by TLS, which lets routers share a certificate or not."""
    own = certificates.tls_settings("load-monitor")
    toml = mesh_toml([("e0", "127.0.0.1:1")]).replace(
        "[[mesh.tasks]]",
        f'[mesh.tls]\nroot_certificates = "{own.root_certificates}"\n'
        f'certificate = "{own.certificate}"\nkey = "{own.key}"\n[[mesh.tasks]]',
        1,
    )
    path = folder / "monitor.toml"
    path.write_text(toml)
    settings = load_settings(
        MonitorSettings,
        path=path,
        environ={},
        overrides={
            "load_monitor.listen": "127.0.0.1:0",
            "load_monitor.operate_listen": "127.0.0.1:0",
            "load_monitor.metrics_listen": "",
            "load_monitor.shared_router_certificate": str(shared).lower(),
        },
    )
    return LoadMonitorApp(settings=settings, profile_names={}, clock=SystemClock())


async def test_the_monitor_knows_services_by_their_certificates(tmp_path: Path) -> None:
    """A router may report and not operate; an operator may, at the operators' address."""
    app = monitor(tmp_path)
    async with AsyncExitStack() as stack:
        running = await app.start(stack)
        stack.push_async_callback(running.server.stop, 0.0)
        await running.server.start()
        addresses = tuple(str(running.server.addresses[name]) for name in ("grpc", "operate"))
        reports: dict[str, str] = {}
        for name in ("router-inference", "operator", "redis"):
            for place, address in zip(("listen", "operate"), addresses, strict=True):
                channel = await stack.enter_async_context(_channel(name, address))
                stub: Any = monitor_grpc.LoadMonitorServiceStub(channel)
                # A router's watch is let in and waits for a first state; others hear a refusal.
                watch_s = 0.3 if name == "router-inference" else LIMIT_S

                def remove(stub: Any = stub) -> Any:
                    request = monitor_pb.RemoveEndpointRequest(endpoint="none")
                    return stub.RemoveEndpoint(request, timeout=LIMIT_S)

                def watch(stub: Any = stub, watch_s: float = watch_s) -> Any:
                    request = monitor_pb.WatchSystemStateRequest()
                    return stub.WatchSystemState(request, timeout=watch_s).read()

                # One after the other: the first call finds time to connect by TLS.
                for what, call in (("remove", remove), ("watch", watch)):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call()
                    found = details_of(caught.value)
                    reports[f"{name} {place} {what}"] = (
                        found["ErrorInfo"].reason if found else caught.value.code().name
                    )
    assert reports == {
        "router-inference listen remove": "OPERATE_PORT",
        "router-inference listen watch": "DEADLINE_EXCEEDED",
        "router-inference operate remove": "ROLE_MISSING",
        "router-inference operate watch": "DEADLINE_EXCEEDED",
        "operator listen remove": "OPERATE_PORT",
        "operator listen watch": "ROLE_MISSING",
        "operator operate remove": "ENDPOINT_NOT_FOUND",
        "operator operate watch": "ROLE_MISSING",
        "redis listen remove": "OPERATE_PORT",
        "redis listen watch": "MISSING_CREDENTIALS",
        "redis operate remove": "MISSING_CREDENTIALS",
        "redis operate watch": "MISSING_CREDENTIALS",
    }


@pytest.mark.parametrize(
    ("named", "shared", "router_id", "reason"),
    [
        ("r1", False, "r1", ""),
        ("r1", False, "r2", "ROUTER_ID_NOT_OWN"),
        ("r1", True, "r2", "ROUTER_ID_NOT_OWN"),
        ("", False, "r1", "ROUTER_ID_MISSING"),
        ("", True, "r1", ""),
    ],
)
async def test_a_router_reports_and_watches_as_the_one_its_certificate_names(
    tmp_path: Path, named: str, shared: bool, router_id: str, reason: str
) -> None:
    """Whatever its epoch; one that names none only where the monitor's settings allow it."""
    shutil.copytree(certificates.folder() / "root", tmp_path / "root")
    make_certificates(tmp_path, names=["router-inference"], router_id=named)
    async with AsyncExitStack() as stack:
        running = await monitor(tmp_path, shared=shared).start(stack)
        stack.push_async_callback(running.server.stop, 0.0)
        await running.server.start()
        address = str(running.server.address)
        channel = await stack.enter_async_context(_channel("router-inference", address, tmp_path))
        load = system_state_pb2.RouterLoad(router_id=router_id, epoch=1, sequence=1)
        load.report_time.GetCurrentTime()
        stub: Any = monitor_grpc.LoadMonitorServiceStub(channel)
        call = stub.ReportTraffic(
            iter([monitor_pb.ReportTrafficRequest(load=load)]), timeout=LIMIT_S
        )
        watch = monitor_pb.WatchSystemStateRequest(router_id=router_id, epoch=1)
        states = stub.WatchSystemState(watch, timeout=LIMIT_S if reason else 0.3)
        if reason:
            assert await reason_of(call) == ("PERMISSION_DENIED", reason)
            assert await reason_of(states.read()) == ("PERMISSION_DENIED", reason)
        else:
            assert (await call).last_sequence == 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await states.read()  # there is no state yet
            assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def _channel(name: str, address: str, where: Path | None = None) -> grpc.aio.Channel:
    held = read_certificates(certificates.tls_settings(name, where), SystemClock().wall_ns() / 1e9)
    return grpc.aio.secure_channel(
        address, held.for_channel(), options=[("grpc.use_local_subchannel_pool", 1)]
    )
