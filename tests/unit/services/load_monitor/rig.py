"""One monitor process without its server, on a fake clock and a fake store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from prometheus_client import CollectorRegistry

from router.fleet import EndpointSpec
from services.common.access.plain_text import Refusal
from services.common.log import get_logger
from services.common.supervision import Supervisor
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.board import Board
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.convert import report_from_message
from services.load_monitor.convert_state import state_of_picture
from services.load_monitor.coordination import Coordinator
from services.load_monitor.health import HealthRules
from services.load_monitor.model import (
    EndpointView,
    Picture,
    RouterReport,
    SharedLoads,
    order_of,
)
from services.load_monitor.prober import Prober, ProbeTimes
from services.load_monitor.publisher import Publisher
from services.load_monitor.shared_ratings import SharedRatings
from services.load_monitor.shared_targets import SharedTargets
from services.load_monitor.shared_topology import SharedTopology
from services.load_monitor.topology import Topology
from services.load_monitor.versions import Versions
from tests.fakes.clock import FakeClock, settle
from tests.fakes.probe_client import FakeProbeClient
from tests.fakes.state_store import SwitchableStore
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

LOG = get_logger("test")


def endpoint(name: str) -> EndpointSpec:
    """Returns an endpoint whose address is its name."""
    return EndpointSpec(name, f"{name}:1", name, {"small": "small", "large": "opt"})


def refused_if_evil(field: str, address: str) -> Refusal | None:
    """Refuses the addresses of `evil`, whichever of an endpoint's it is."""
    allowed = "mesh.endpoint_addresses"
    return Refusal(f"{field} is evil", allowed) if address.startswith("evil") else None


def report(router_id: str, sequence: int = 1, in_flight_count: int = 0) -> RouterReport:
    """Returns a report as it comes over the network."""
    candidate = common_pb2.Candidate(tier="small", endpoint="e1")
    load = pb.CandidateLoad(candidate=candidate, in_flight_count=in_flight_count)
    return report_from_message(
        pb.RouterLoad(router_id=router_id, epoch=1, sequence=sequence, loads=[load])
    )


def picture(
    version: int,
    views: tuple[EndpointView, ...] = (),
    reports: tuple[RouterReport, ...] = (),
    topology_version: int = 1,
) -> Picture:
    """Returns a picture of a mesh without traffic."""
    loads = SharedLoads.of(order_of(view.spec for view in views), reports)
    return Picture(version, "m1", 1, views, loads, 0.0, 0.0, topology_version)


class Monitor:
    """One monitor process without its server."""

    def __init__(
        self, name: str, clock: FakeClock, store: SwitchableStore, *, is_alone: bool = False
    ) -> None:
        self.clients: dict[str, FakeProbeClient] = {}
        self.board = Board(
            monitor_id=name,
            clock=clock,
            rules=HealthRules(2, 2, 5.0, 0.1),
            aggregator=Aggregator(clock=clock, silence_s=3.0, max_routers=10),
            topology=Topology({"e1": endpoint("e1")}).renumbered(),
        )
        self.broadcast = Broadcast(clock)
        self.versions = Versions(clock)
        self.coordinator = Coordinator(
            process_id=name,
            store=store,
            is_alone=is_alone,
            topology=SharedTopology(
                store=store,
                board=self.board,
                clock=clock,
                log=LOG,
                refusal=refused_if_evil,
            ),
            targets=SharedTargets(store=store, board=self.board, clock=clock, log=LOG),
            ratings=SharedRatings(store=store, board=self.board, clock=clock, log=LOG),
            board=self.board,
            broadcast=self.broadcast,
            versions=self.versions,
            clock=clock,
            log=LOG,
            interval_s=0.08,
            lease_ttl_s=2.0,
        )
        self.publisher = Publisher(
            board=self.board,
            broadcast=self.broadcast,
            coordinator=self.coordinator,
            versions=self.versions,
            clock=clock,
            log=LOG,
            interval_s=0.08,
            idle_interval_s=1.0,
        )
        self.prober = Prober(
            board=self.board,
            connect=self._connect,
            times=ProbeTimes(gauge_interval_s=0.2, ready_interval_s=1.0, timeout_s=1.0),
            clock=clock,
            log=LOG,
            is_publishing=lambda: self.coordinator.is_publishing,
            supervisor=Supervisor(registry=CollectorRegistry(), clock=clock, log=LOG),
        )

    def _connect(self, spec: EndpointSpec) -> FakeProbeClient:
        return self.clients.setdefault(spec.address.partition(":")[0], FakeProbeClient())

    @property
    def state(self) -> pb.SystemState:
        """The newest state it serves."""
        assert self.broadcast.latest is not None
        return state_of_picture(self.broadcast.latest)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Runs its tasks."""

        async def nothing() -> None:
            return None

        await self.coordinator.round()
        tasks = [
            asyncio.create_task(work)
            for work in (self.prober.run(), self.publisher.run(), self.coordinator.run(nothing))
        ]
        try:
            await settle()
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
