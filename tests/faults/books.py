"""What routers, monitor, trainer and Redis have on their books before and after a run."""

from __future__ import annotations

import dataclasses

import httpx
from prometheus_client.parser import text_string_to_metric_families

from services.common.state import keys
from tests.faults.experience import last_id
from tests.faults.mesh import FaultMesh
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb

_TIMEOUT_S = 5.0


@dataclasses.dataclass(frozen=True)
class RouterBook:
    """Counts of a router since its start.

    Attributes:
        epoch: Its start; another one means that it was started again.
        requests: Requests that ended, bad input included.
        written: Experience records that Redis has acknowledged.
        dropped: Records lost because Redis was away.
    """

    epoch: int
    requests: int
    written: int
    dropped: int


@dataclasses.dataclass(frozen=True)
class Books:
    """Everything that is counted or kept.

    Attributes:
        routers: By name.
        records: Experience records in Redis.
        policies: Policies of the registry as name@version, with their stage.
        endpoints: Names of the endpoints.
        last_id: Id of the newest experience entry.
        starts: How often each process was started.
    """

    routers: dict[str, RouterBook]
    records: int
    policies: frozenset[str]
    endpoints: frozenset[str]
    last_id: str
    starts: dict[str, int]


async def read_books(mesh: FaultMesh) -> Books:
    """Reads them all; the mesh must be whole."""
    listed = await mesh.trainer_call("ListPolicies", trainer_pb.ListPoliciesRequest())
    state = await mesh.system_state()
    return Books(
        routers={name: await _router(mesh, name) for name in mesh.router_names},
        records=int(await mesh.redis_client.xlen(keys.EXPERIENCE_STREAM)),
        policies=frozenset(f"{p.policy}@{p.policy_version} {p.stage}" for p in listed.policies),
        endpoints=frozenset(each.endpoint.endpoint for each in state.endpoints),
        last_id=await last_id(mesh),
        starts=mesh.starts(),
    )


async def read_metrics(address: str) -> dict[str, float]:
    """Reads a page of metrics; samples of one name are added up over their labels."""
    async with httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client:
        page = (await client.get(f"http://{address}/metrics")).text
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


async def under_way(mesh: FaultMesh) -> str:
    """Says where requests are still under way; empty if nowhere."""
    for name in mesh.router_names:
        status = await mesh.router_status(name)
        own = sum(c.own_in_flight_count + c.other_in_flight_count for c in status.candidates)
        if status.in_flight_count or own:
            return f"{name}: {status.in_flight_count} requests, {own} on candidates"
    state = await mesh.system_state()
    count = sum(load.in_flight_count for router in state.routers for load in router.loads)
    if count:
        return f"load-monitor: {count}"
    waiting = sum(gauge.queue_depth for each in state.endpoints for gauge in each.gauges)
    return f"triton: {waiting}" if waiting else ""


async def _router(mesh: FaultMesh, name: str) -> RouterBook:
    status = await mesh.router_status(name)
    totals = await read_metrics(mesh.metrics_address(name))
    return RouterBook(
        epoch=status.epoch,
        requests=round(
            totals.get("tiercel_requests_total", 0.0)
            + totals.get("tiercel_invalid_requests_total", 0.0)
        ),
        written=round(totals.get("tiercel_experience_written_total", 0.0)),
        dropped=round(totals.get("tiercel_experience_dropped_total", 0.0)),
    )
