"""Each process is killed under load in turn; every offered request is accounted for."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from services.loadgen.records import FAILED, ON_TIME, RunRecords, summarize
from tests.e2e.mesh import Mesh
from tests.waiting import until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(240)]

RATE_RPS = 30.0
LOAD_S = 5.0
FAULT_AFTER_S = 1.0
# The longest an endpoint's restart may take, seen from the mesh: Triton's own start included.
RECOVERY_LIMIT_S = 90.0


async def load_with_fault(mesh: Mesh, name: str, number: signal.Signals) -> tuple[RunRecords, int]:
    """Offers load and signals a child in the middle of it; returns the records and its pid."""
    load = asyncio.create_task(mesh.load([("fault", LOAD_S, RATE_RPS)], seed=7))
    await until(lambda: _in_flight_count(mesh), "the load begins")
    await asyncio.sleep(FAULT_AFTER_S)
    pid = mesh.signal(name, number)
    return await load, pid


def assert_accounted(records: RunRecords) -> None:
    """Every offered request ended in exactly one of the five outcomes."""
    summary = summarize(records)
    bad = records.select(records.columns["status"] != ON_TIME)
    # Shown by pytest if the test fails: why each went wrong.
    print(Counter(records.names["reason"][index] for index in bad.columns["reason"] if index >= 0))
    outcomes = ("on_time", "late", "refused", "cancelled", "failed")
    assert sum(summary[name] for name in outcomes) == summary["offered"] > 100


@pytest.mark.parametrize("name", ["load-monitor", "trainer", "redis"])
async def test_serving_goes_on_without(mesh: Mesh, name: str) -> None:
    """Killing monitor, trainer or Redis costs no request; the process comes back."""
    records, pid = await load_with_fault(mesh, name, signal.SIGKILL)
    assert_accounted(records)
    summary = summarize(records)
    assert summary["failed"] == 0, summary
    assert summary["availability"] >= 0.99, summary
    mesh.wait_until(lambda: mesh.is_restarted(name, pid), f"{name}'s restart")


async def test_a_killed_router_is_left_to_the_other(mesh: Mesh) -> None:
    """A killed router loses what it had under way at most; the client goes to the other one."""
    records, pid = await load_with_fault(mesh, "router-inference-0", signal.SIGKILL)
    assert_accounted(records)
    failed = int(np.sum(records.columns["status"] == FAILED))
    # About 0.1 s of service at half of the rate was under way.
    assert failed <= 10, summarize(records)
    assert summarize(records)["availability"] >= 0.94
    mesh.wait_until(lambda: mesh.is_restarted("router-inference-0", pid), "the router's restart")


async def test_a_killed_triton_answers_unavailable_and_recovers(mesh: Mesh) -> None:
    """Without Triton requests fail with a reason inside their deadline; with it they are served."""
    records, pid = await load_with_fault(mesh, "triton", signal.SIGKILL)
    assert_accounted(records)
    bad = records.select(records.columns["status"] != ON_TIME)
    assert len(bad) > 0, "the fault fell outside the load"
    reasons = {records.names["reason"][i] for i in bad.columns["reason"] if i >= 0}
    assert reasons
    assert reasons <= {"NO_USABLE_ENDPOINT", "ENDPOINT_FAILED", "DEADLINE_EXCEEDED"}, reasons
    late_by_s = bad.columns["latency_s"] - records.deadline_s
    assert float(np.max(late_by_s)) < 1.0, "an error came long after the deadline"
    mesh.wait_until(lambda: mesh.is_restarted("triton", pid), "Triton's restart", RECOVERY_LIMIT_S)
    mesh.wait_until(lambda: _answers(mesh), "recovery", RECOVERY_LIMIT_S)
    after = await mesh.load([("after", 4.0, RATE_RPS)], seed=8)
    assert summarize(after)["availability"] >= 0.99, summarize(after)


async def test_a_drained_router_fails_no_request(mesh: Mesh) -> None:
    """SIGTERM under load: the router finishes what it has, the other takes the rest."""
    records, pid = await load_with_fault(mesh, "router-inference-1", signal.SIGTERM)
    assert_accounted(records)
    summary = summarize(records)
    assert summary["failed"] == 0, summary
    assert summary["availability"] >= 0.99, summary
    mesh.wait_until(lambda: mesh.is_restarted("router-inference-1", pid), "the router's restart")


async def _in_flight_count(mesh: Mesh) -> int:
    """Returns how many requests are under way at the routers."""
    count = 0
    for address in mesh.routers:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = pb_grpc.RouterInferenceServiceStub(channel)
            status = await stub.GetRouterStatus(pb.GetRouterStatusRequest(), timeout=5.0)
            count += status.in_flight_count
    return count


def _answers(mesh: Mesh) -> bool:
    """Says whether every router answers a request in time."""
    for address in mesh.routers:
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.RouterInferenceServiceStub(channel)
            spec = pb.GenerationSpec(prompt="are you back", task="piqa")
            spec.deadline.FromSeconds(2)
            try:
                stub.Generate(pb.GenerateRequest(spec=spec), timeout=2.0)
            except grpc.RpcError:
                return False
    return True
