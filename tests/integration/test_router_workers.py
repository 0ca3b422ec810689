"""A router of several worker processes: one port, one name, whatever becomes of a worker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.grpc import service_pb2 as kserve
from tritonclient.grpc import service_pb2_grpc as kserve_grpc

from services.router_inference.path.tickets import TicketSigner
from services.router_inference.settings import RouterInferenceSettings
from services.router_inference.workers.parent import LONGEST_WAIT_S
from tests.bench import worker_kills
from tests.fakes.router_process import RouterProcess, mesh_toml, router_process
from tests.fakes.triton import FakeTriton, Script
from tests.integration.test_lifecycle import serving_status
from tests.kserve_requests import infer_request, said
from tests.unit.deploy.manifests import ROOT
from tests.unit.services.router_inference.doors.envoy import gateway
from tests.waiting import LIMIT_S, until
from tiercel import AsyncClient
from tiercel.common.v1 import common_pb2
from tiercel.envoy.v3 import external_processor_pb2_grpc as envoy_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

KEY = "one key for all workers"
HTTP = "127.0.0.1:8000"


@contextlib.asynccontextmanager
async def workers(
    folder: Path,
    *,
    count: int = 2,
    script: Script | None = None,
    listen: str = "127.0.0.1:0",
    more: str = "",
    grace_s: float = 2.0,
) -> AsyncIterator[RouterProcess]:
    """Runs a router of several workers before one endpoint, `more` lines in its section."""
    triton = await FakeTriton(default=script or Script(tokens=("a",), step_s=0.005)).start()
    own = f'workers = {count}\ncompiled = false\nticket_key = "{KEY}"\n{more}'
    toml = mesh_toml([("e0", triton.address)], router=own, deadline_s=20.0)
    toml = toml.replace("grace_s = 2.0", f"grace_s = {grace_s}")
    http = f'address = "{triton.address}"\nhttp_address = "{HTTP}"'
    toml = toml.replace(f'address = "{triton.address}"', http, 1)
    toml = toml.replace('metrics_listen = ""', 'metrics_listen = "127.0.0.1:0"')
    toml = toml.replace('\nlisten = "127.0.0.1:0"', f'\nlisten = "{listen}"', 1)
    try:
        with router_process(folder, toml) as router:
            yield router
    finally:
        await triton.stop()


def pids(router: RouterProcess) -> list[int]:
    """Returns the process ids of the workers that run."""
    return [child.pid for child in psutil.Process(router.process.pid).children()]


@contextlib.asynccontextmanager
async def load(address: str, lost: list[str], *, callers: int = 8) -> AsyncIterator[list[str]]:
    """Calls until the block ends; yields the answers so far, notes what was lost."""
    answers: list[str] = []
    stop = asyncio.Event()

    async def call(client: AsyncClient) -> None:
        while not stop.is_set():
            try:
                answers.append((await client.generate("hi", task="piqa", deadline_s=20.0)).text)
            except Exception as error:
                lost.append(repr(error))

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(address)) for _ in range(callers)]
        calls = [asyncio.ensure_future(call(client)) for client in clients]
        yield answers
        stop.set()
        await asyncio.gather(*calls)


async def metrics(router: RouterProcess, *names: str) -> dict[tuple[str, ...], float]:
    """Returns the router's metrics by name and by the values of labels that tell how it went.

    With `names` those alone; without, each is added up over its labels.
    """

    def read() -> str:
        with urllib.request.urlopen(f"http://{router.metrics}/metrics", timeout=LIMIT_S) as page:
            return str(page.read().decode())

    sums: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(read)):
        for sample in family.samples:
            labels = [sample.labels[key] for key in ("policy", "outcome") if key in sample.labels]
            key = (sample.name, *(labels if names else ()))
            if sample.name in names or not names:
                sums[key] = sums.get(key, 0.0) + sample.value
    return sums


def worker_of(ticket: bytes) -> str:
    """Returns the name of the worker that signed a ticket."""
    return TicketSigner(KEY.encode()).read(ticket).router_id


async def routes(
    router: RouterProcess, stack: contextlib.AsyncExitStack, count: int = 2
) -> dict[str, tuple[Any, bytes]]:
    """Returns a stub on each worker with a ticket of it."""
    found: dict[str, tuple[Any, bytes]] = {}
    request = pb2.RouteRequest(task="piqa", prompt_token_count=10)
    for _ in range(100):
        # A connection of its own each: the kernel decides which worker gets it.
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = grpc.aio.insecure_channel(router.address, options=options)
        await stack.enter_async_context(channel)
        stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
        ticket = (await stub.Route(request, timeout=LIMIT_S)).ticket
        found[worker_of(ticket)] = (stub, ticket)
        if len(found) == count:
            break
    return found


async def test_workers_share_a_port_and_close_each_others_tickets(tmp_path: Path) -> None:
    """Both workers get connections; a ticket of one is closed by the other, once."""
    async with workers(tmp_path) as router, contextlib.AsyncExitStack() as stack:
        (_, ticket), (other, _) = (await routes(router, stack)).values()
        report = pb2.ReportOutcomeRequest(
            ticket=ticket, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=3
        )
        await other.ReportOutcome(report, timeout=LIMIT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await other.ReportOutcome(report, timeout=LIMIT_S)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_ticket_counts_at_its_own_worker_whoever_is_told(tmp_path: Path) -> None:
    """Its load is gone at once and its outcome is counted once; a lease that ends is a failure."""
    async with workers(tmp_path) as router, contextlib.AsyncExitStack() as stack:
        stubs = await routes(router, stack)
        (first, ticket), (second, other_ticket) = stubs.values()
        for stub, closed in ((second, ticket), (first, other_ticket)):
            report = pb2.ReportOutcomeRequest(
                ticket=closed, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=3
            )
            await stub.ReportOutcome(report, timeout=LIMIT_S)
        found = await metrics(router, "tiercel_requests_total")
        assert found["tiercel_requests_total", "on_time"] == 2.0
        status = await first.GetRouterStatus(pb2.GetRouterStatusRequest(), timeout=LIMIT_S)
        others = sum(each.own_in_flight_count for each in status.candidates)
        # `routes` may have asked for more tickets than the two that are closed.
        assert others == status.in_flight_count
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.ReportOutcome(
                pb2.ReportOutcomeRequest(
                    ticket=ticket, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=999
                ),
                timeout=LIMIT_S,
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_kserve_door_counts_for_all_workers(tmp_path: Path) -> None:
    """Whichever worker a client of Triton is connected to: the same answers, the same counts."""
    async with workers(tmp_path) as router, contextlib.AsyncExitStack() as stack:
        await routes(router, stack)
        stubs: list[Any] = []
        for _ in range(8):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(router.address, options=options)
            stubs.append(kserve_grpc.GRPCInferenceServiceStub(channel))
            await stack.enter_async_context(channel)
        request = infer_request("small", parameters={"tiercel_task": "piqa", "timeout": 20_000_000})
        for stub in stubs:
            answer = await stub.ModelInfer(request, timeout=LIMIT_S)
            assert said(answer)["tiercel_tier"] == "small"
        asked = kserve.ModelStatisticsRequest(name="small")
        counts = [
            (await stub.ModelStatistics(asked, timeout=LIMIT_S)).model_stats[0].inference_count
            for stub in stubs
        ]
        assert counts == [8] * 8


async def test_what_one_worker_knows_every_worker_answers(tmp_path: Path) -> None:
    """An explanation and feedback reach the worker that took the decision."""
    async with workers(tmp_path) as router, contextlib.AsyncExitStack() as stack:
        (first, _), (second, _) = (await routes(router, stack)).values()
        spec = pb2.GenerationSpec(prompt="hi", task="piqa", request_id="mine")
        await first.Generate(pb2.GenerateRequest(spec=spec), timeout=LIMIT_S)
        explained = pb2.ExplainDecisionRequest(request_id="mine")
        replies = [
            await stub.ExplainDecision(explained, timeout=LIMIT_S) for stub in (first, second)
        ]
        assert replies[0] == replies[1]
        feedback = pb2.ReportOutcomeRequest(request_id="mine", quality=0.5)
        await second.ReportOutcome(feedback, timeout=LIMIT_S)
        for request, method in (
            (pb2.ExplainDecisionRequest(request_id="nobody's"), second.ExplainDecision),
            (pb2.ReportOutcomeRequest(request_id="nobody's", quality=0.5), second.ReportOutcome),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, timeout=LIMIT_S)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_conversation_is_known_to_every_worker_and_successor(tmp_path: Path) -> None:
    """Whichever worker answers, it stays where another served it, also after that was killed."""
    async with workers(tmp_path) as router, contextlib.AsyncExitStack() as stack:
        stubs = [stub for stub, _ in (await routes(router, stack)).values()]
        assert len(stubs) == 2
        spec = pb2.GenerationSpec(prompt="hi", task="piqa", conversation_id="talk")
        request = pb2.GenerateRequest(spec=spec)
        stays = [(await stub.Generate(request)).completion.conversation_stay for stub in stubs]
        assert stays == [common_pb2.CONVERSATION_STAY_NEW, common_pb2.CONVERSATION_STAY_KEPT]
        os.kill(pids(router)[0], signal.SIGKILL)
        async with AsyncClient(router.address) as client:
            answer = await client.generate("hi", task="piqa", conversation_id="talk")
        assert answer.conversation_stay == "kept"


async def test_a_policy_is_used_by_every_worker_and_its_successor(tmp_path: Path) -> None:
    """Whoever is told tells the others."""
    async with workers(tmp_path, count=3) as router, contextlib.AsyncExitStack() as stack:
        (stub, _), *_ = (await routes(router, stack, count=3)).values()
        await stub.UsePolicy(pb2.UsePolicyRequest(policy="static-small"), timeout=LIMIT_S)
        os.kill(pids(router)[1], signal.SIGKILL)

        async def all_use_it() -> bool:
            found = await metrics(router, "tiercel_policy_info", "tiercel_workers")
            policies = {labels[0] for name, *labels in found if name == "tiercel_policy_info"}
            return policies == {"static-small"} and found["tiercel_workers",] == 3.0

        await until(all_use_it, "every worker uses the policy")


async def test_killed_worker_is_followed_and_its_counts_stay(tmp_path: Path) -> None:
    """The others go on, a successor serves under its number, no counter goes down."""
    lost: list[str] = []
    async with workers(tmp_path) as router:
        async with load(router.address, lost) as answers:
            await until(lambda: len(answers) > 50, "both are under load")
            before = await metrics(router)
            first = pids(router)
            os.kill(first[0], signal.SIGKILL)
            seen = len(answers)
            await until(lambda: len(answers) > seen + 50, "answers come again")

            async def are_two() -> bool:
                return (await metrics(router))["tiercel_workers",] == 2.0

            await until(are_two, "the successor serves")
            after = await metrics(router)
        assert len(set(pids(router)) - set(first)) == 1
        names = [name for name in before if name[0].endswith(("_total", "_count", "_bucket"))]
        assert [name for name in names if after[name] < before[name]] == []
        assert after["tiercel_worker_restarts_total",] == 1.0
        # Each of the callers has one call at a time; those of the killed one broke off.
        assert len(lost) <= 8
        assert all("Unreachable" in error or "UNAVAILABLE" in error for error in lost), lost


async def test_rolling_restart_loses_no_request(tmp_path: Path) -> None:
    """On SIGHUP every worker is replaced, by the settings as they are now, under load.

    A file that is wrong replaces nobody.
    """
    lost: list[str] = []
    async with workers(tmp_path) as router:
        first = pids(router)
        async with load(router.address, lost) as answers:
            await until(lambda: len(answers) > 50, "both are under load")
            log, config = router.log_path, tmp_path / "tiercel.toml"
            good = config.read_text()
            config.write_text(good + "nonsense = 1\n")
            router.process.send_signal(signal.SIGHUP)
            await until(lambda: "settings_not_reloaded" in log.read_text(), "it is refused")
            config.write_text(good.replace("workers = 2", 'workers = 3\npolicy = "static-small"'))
            router.process.send_signal(signal.SIGHUP)
            await until(lambda: "rolling_restart_done" in log.read_text(), "all are replaced")
            said = log.read_text()
            assert "settings_reloaded changed=router_inference.policy" in said
            assert "setting=router_inference.workers" in said
            assert said.count("rolling_restart ") <= 1
            seen = len(answers)
            await until(lambda: len(answers) > seen + 50, "answers go on")
        assert lost == []
        assert set(pids(router)).isdisjoint(first)
        assert (await metrics(router))["tiercel_requests_total",] == len(answers)
        async with AsyncClient(router.address) as client:
            assert (await client.generate("hi", task="piqa")).policy == "static-small"


async def test_drain_ends_every_worker_and_loses_no_request(tmp_path: Path) -> None:
    """On SIGTERM what is under way is answered by each worker, and the exit code is 0."""
    gate = asyncio.Event()
    script = Script(tokens=("a",) * 4, step_s=0.1, gate=gate)
    async with (
        workers(tmp_path, script=script, grace_s=20.0) as router,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(AsyncClient(router.address)) for _ in range(12)]
        calls = [
            asyncio.ensure_future(client.generate("hi", task="piqa", deadline_s=20.0))
            for client in clients
        ]

        async def are_under_way() -> bool:
            return (await metrics(router))["tiercel_requests_in_flight",] == len(calls)

        await until(are_under_way, "every call is under way")
        router.process.send_signal(signal.SIGTERM)
        await until(lambda: "draining" in router.log_path.read_text(), "the drain begins")
        gate.set()
        answers = await asyncio.gather(*calls)
        assert [answer.text for answer in answers] == ["aaaa"] * len(calls)
        assert await asyncio.to_thread(router.process.wait, LIMIT_S) == 0
        assert "Traceback" not in router.log_path.read_text()


async def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Nobody would watch them; the port is free for a new router."""
    async with workers(tmp_path) as router:
        orphans = [psutil.Process(pid) for pid in pids(router)]
        router.process.kill()
        await until(lambda: not any(process.is_running() for process in orphans), "the workers end")
        host, port = router.address.split(":")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))


async def test_health_is_never_that_of_a_worker_that_starts(tmp_path: Path) -> None:
    """A worker listens once it can serve, so every probe that is answered meets one that does."""
    async with workers(tmp_path, count=3) as router:
        router.process.send_signal(signal.SIGHUP)
        answers: list[str] = []
        while "rolling_restart_done" not in router.log_path.read_text():
            with contextlib.suppress(grpc.aio.AioRpcError):  # it met the very end of one
                answers.append(await serving_status(router.address))
        assert set(answers) == {"SERVING"}


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """Two routers must not share a port by mistake, although the kernel would let them."""
    async with workers(tmp_path) as router:
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router_inference"),
            *("--config", str(tmp_path / "tiercel.toml"), "--listen", router.address),
            stderr=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        _, said = await asyncio.wait_for(second.communicate(), LIMIT_S)
        assert second.returncode == 1
        last = said.decode().splitlines()[-1]
        assert last == f"router-inference: cannot listen on {router.address}: the port is in use"


async def test_operating_calls_have_an_address_that_all_workers_share(tmp_path: Path) -> None:
    """Where other machines reach the router, nobody there may operate it."""
    open_to_all = '0.0.0.0:0"\ninsecure_open_to_network = true\noperate_listen = "127.0.0.1:0'
    async with workers(tmp_path, listen=open_to_all) as router:
        addresses = json.loads((tmp_path / "ready.json").read_text())["addresses"]
        assert len({addresses["grpc"], addresses["operate"], addresses["metrics"]}) == 3
        for _ in range(8):
            assert await serving_status(addresses["operate"]) == "SERVING"
        assert router.address == addresses["grpc"]


def test_wait_before_a_successor_stays_below_a_probes_patience() -> None:
    """A worker that keeps dying is tried again before anybody gives the router up."""
    assert RouterInferenceSettings().grace_s > LONGEST_WAIT_S


async def test_workers_killed_at_random_leave_nothing_behind(tmp_path: Path) -> None:
    """Neither load nor counts nor a caller that waits; the monitor sees one router throughout."""
    found = await worker_kills.measure(tmp_path, kills=8, seed=3)
    assert found.kills == 8
    assert found.routers == {"r"}
    assert found.others == []
    assert found.most_at_router <= worker_kills.CALLERS
    assert found.most_at_monitor <= worker_kills.CALLERS
    assert (found.left, found.unended, found.went_down) == (0, 0, 0)
    assert found.answers > 0
    assert found.longest_s < LIMIT_S / 3.0


async def test_gateways_ask_whichever_worker_they_reach(tmp_path: Path) -> None:
    """An exchange stays with its worker; all of them share one ledger and one port."""
    async with workers(tmp_path, more='envoy_listen = "127.0.0.1:0"') as router:
        addresses = json.loads((tmp_path / "ready.json").read_text())["addresses"]
        assert set(addresses) >= {"grpc", "envoy"}
        async with contextlib.AsyncExitStack() as stack:
            for number in range(8):
                options = [("grpc.use_local_subchannel_pool", 1)]
                channel = grpc.aio.insecure_channel(addresses["envoy"], options=options)
                await stack.enter_async_context(channel)
                call: Any = envoy_grpc.ExternalProcessorStub(channel).Process(timeout=LIMIT_S)
                asked = gateway.request(x_tiercel_task="piqa", x_request_id=f"r{number}")
                answered = gateway.response(served=HTTP)
                for message in (asked, answered, gateway.TRAILERS):
                    await call.write(message)
                    answer = await call.read()
                    assert answer.WhichOneof("response") == message.WhichOneof("request")
                await call.done_writing()

        async def all_are_counted() -> bool:
            found = await metrics(router, "tiercel_requests_total", "tiercel_requests_in_flight")
            ended = sum(n for name, n in found.items() if name[0] == "tiercel_requests_total")
            return ended == 8.0 and found["tiercel_requests_in_flight",] == 0.0

        await until(all_are_counted, "every exchange has ended and is counted")


async def pressure_at(stub: Any, request_id: str) -> float:
    """Returns the pressure that a request with much time feels at a worker."""
    spec = pb2.GenerationSpec(prompt="hi", task="piqa", request_id=request_id)
    await stub.Generate(pb2.GenerateRequest(spec=spec), timeout=LIMIT_S)
    request = pb2.ExplainDecisionRequest(request_id=request_id)
    decision = await stub.ExplainDecision(request, timeout=LIMIT_S)
    return float(decision.target_pressure)


async def test_misses_at_one_worker_are_felt_at_all_and_outlive_it(tmp_path: Path) -> None:
    """Its sibling and its successor act on the same pressure; kill -9 takes nothing of it."""
    script = Script(tokens=("a",), step_s=1.0)
    async with workers(tmp_path, script=script) as router, contextlib.AsyncExitStack() as stack:
        stubs = {name[-1]: stub for name, (stub, _) in (await routes(router, stack)).items()}
        assert await pressure_at(stubs["2"], "before") == 0.0
        spec = pb2.GenerationSpec(prompt="hi", task="piqa", deadline=Duration(nanos=400_000_000))
        for _ in range(3):
            with pytest.raises(grpc.aio.AioRpcError):
                await stubs["1"].Generate(pb2.GenerateRequest(spec=spec), timeout=LIMIT_S)
        at_one = await pressure_at(stubs["1"], "one")
        assert at_one > 1.0
        # 0.01 x 20 of a deadline of 20 s is what it falls by in one.
        assert await pressure_at(stubs["2"], "two") == pytest.approx(at_one, abs=0.2)
        first, _ = pids(router)
        os.kill(first, signal.SIGKILL)
        await until(lambda: first not in pids(router) and len(pids(router)) == 2, "a successor")
        await until(lambda: serves_again(router), "it serves")
        assert await pressure_at(stubs["2"], "still two") == pytest.approx(at_one, abs=0.3)
        again = {name[-1]: stub for name, (stub, _) in (await routes(router, stack)).items()}
        assert await pressure_at(again["1"], "the successor") == pytest.approx(at_one, abs=0.3)


def serves_again(router: RouterProcess) -> bool:
    """Returns whether the first worker has served twice."""
    log = router.log_path.read_text()
    return sum("worker_serves" in line and "worker=1" in line for line in log.splitlines()) >= 2
