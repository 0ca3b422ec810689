"""Builds the load monitor out of its parts; the only place that does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack

import grpc.aio

from router.fleet import EndpointProtocol, EndpointSpec
from services.common.access.access import load_access
from services.common.access.plain_text import Outgoing, Refusal
from services.common.clock import Clock, SystemClock
from services.common.convert import endpoint_of_settings
from services.common.interpreter import suit_requests
from services.common.lifecycle import Running
from services.common.log import get_logger
from services.common.mesh_settings import MeshSettings, endpoint_profile_names
from services.common.metrics import new_registry, start_metrics_server
from services.common.openai.client import OpenAIClient
from services.common.openai.keys import read_api_keys
from services.common.process_id import new_process_id
from services.common.server import ServerSettings, ServiceDefinition, build_server
from services.common.state.connect import connect_stores
from services.common.supervision import Supervisor
from services.common.triton.client import TritonClient
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.board import Board
from services.load_monitor.books import MinuteBooks
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.coordination import Coordinator, Role
from services.load_monitor.health import HealthRules
from services.load_monitor.metrics import MonitorCollector, MonitorCounters
from services.load_monitor.page import MonitorPage
from services.load_monitor.prober import ProbeClient, Prober, ProbeTimes
from services.load_monitor.publisher import Publisher
from services.load_monitor.ratings import MeshRatings
from services.load_monitor.servicer import LoadMonitorServicer
from services.load_monitor.settings import Settings
from services.load_monitor.shared_ratings import SharedRatings
from services.load_monitor.shared_targets import SharedTargets
from services.load_monitor.shared_topology import SharedTopology
from services.load_monitor.topology import Topology
from services.load_monitor.versions import Versions
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc

SERVICE = "tiercel.load_monitor.v1.LoadMonitorService"
REDIS_HEALTH = f"{SERVICE}.redis"
"""Name under which grpc.health.v1 tells whether Redis is there."""
REDIS_UNREACHABLE = "REDIS_UNREACHABLE"


class LoadMonitorApp:
    """The load monitor.

    Args:
        settings: Its settings.
        profile_names: Name of the profile per endpoint that names one of its own.
        clock: The clock.
    """

    name = "load-monitor"

    def __init__(self, *, settings: Settings, profile_names: dict[str, str], clock: Clock) -> None:
        self._settings = settings
        self._own = settings.load_monitor
        self._clock = clock
        self._log = get_logger("services.load_monitor")
        self._outgoing = self._outgoing_of(settings.mesh)
        self._access = load_access(
            "load_monitor",
            self._own,
            settings.mesh.tls,
            settings.mesh.access,
            outgoing=self._outgoing.problems(),
            monotonic_s=clock.monotonic_s,
            log=self._log,
        )
        self._api_keys = read_api_keys(settings.mesh, os.environ)
        self._monitor_id = self._own.monitor_id or new_process_id()
        self._registry = new_registry()
        self._counters = MonitorCounters(self._registry)
        self._supervisor = Supervisor(registry=self._registry, clock=clock, log=self._log)
        self._versions = Versions(clock)
        self._broadcast = Broadcast(clock)
        self._stores = connect_stores(
            settings.mesh.redis_url, clock=clock, timeout_s=self._own.redis_timeout_s
        )
        self._board = Board(
            monitor_id=self._monitor_id,
            clock=clock,
            rules=HealthRules(
                down_after_failures=self._own.down_after_failures,
                up_after_successes=self._own.up_after_successes,
                ramp_s=self._own.ramp_s,
                ramp_start_weight=self._own.ramp_start_weight,
            ),
            aggregator=Aggregator(
                clock=clock,
                silence_s=self._own.router_silence_s,
                max_routers=self._own.max_routers,
            ),
            topology=Topology(_configured(settings.mesh, profile_names)).renumbered(),
            ratings=MeshRatings(clock=clock, is_known=self._is_rated),
        )
        self._topology = SharedTopology(
            store=self._stores.shared,
            board=self._board,
            clock=clock,
            log=self._log,
            refusal=self._refusal,
        )
        self._coordinator = Coordinator(
            process_id=new_process_id(),
            store=self._stores.shared,
            is_alone=not settings.mesh.redis_url,
            topology=self._topology,
            targets=SharedTargets(
                store=self._stores.shared, board=self._board, clock=clock, log=self._log
            ),
            ratings=SharedRatings(
                store=self._stores.shared, board=self._board, clock=clock, log=self._log
            ),
            board=self._board,
            broadcast=self._broadcast,
            versions=self._versions,
            clock=clock,
            log=self._log,
            interval_s=self._own.publish_interval_s,
            lease_ttl_s=self._own.lease_ttl_s,
            on_redis_publication=self._counters.publications.labels(target="redis").inc,
        )
        self._books = MinuteBooks(
            store=self._stores.minutes,
            broadcast=self._broadcast,
            coordinator=self._coordinator,
            clock=clock,
            log=self._log,
        )

    @property
    def server_settings(self) -> ServerSettings:
        """Its section."""
        return self._own

    @property
    def role(self) -> Role:
        """What this monitor does for the mesh at present."""
        return self._coordinator.role

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds what needs a running loop: server, metrics, probes."""
        stack.push_async_callback(self._stores.close)
        server = await build_server(
            services=[
                ServiceDefinition(
                    SERVICE, self._register, watches=("WatchSystemState", "ReportTraffic")
                )
            ],
            settings=self._own,
            registry=self._registry,
            clock=self._clock,
            log=self._log,
            access=self._access,
        )
        publisher = self._publisher()
        self._registry.register(self._collector(publisher))
        metrics_address = ""
        if self._own.metrics_listen:
            page = MonitorPage(
                picture=lambda: self._broadcast.latest,
                age_s=lambda: self._broadcast.age_s,
                role=lambda: self.role,
                degraded=self._degraded_reasons,
                now_s=self._clock.monotonic_s,
            )
            metrics = start_metrics_server(
                self._own.metrics_listen,
                self._registry,
                page.pages(),
                hosts=self._settings.mesh.access.http_hosts,
            )
            stack.push_async_callback(metrics.close)
            metrics_address = str(metrics.address)
        stack.push_async_callback(self._coordinator.close)

        async def report_redis() -> None:
            if not self._settings.mesh.redis_url:
                return
            await server.set_serving(
                self._coordinator.store_available is True, service=REDIS_HEALTH
            )

        async def coordinate() -> None:
            await self._coordinator.run(on_round=report_redis)

        # The first round decides whether to lead, before anything is published.
        await self._coordinator.round()
        await report_redis()
        return Running(
            server=server,
            supervisor=self._supervisor,
            metrics_address=metrics_address,
            tasks={
                "prober": self._prober().run,
                "publisher": publisher.run,
                "coordinator": coordinate,
                "books": self._books.run,
            },
            ready=self._ready,
            take_settings=self._take,
        )

    async def _take(self, settings: Settings, changed: frozenset[str]) -> Collection[str]:
        """Takes endpoints and tasks of other settings; changes made while running stay."""
        new = settings.mesh
        live = {
            "endpoints": new.endpoints,
            "endpoint_addresses": new.endpoint_addresses,
            "tasks": new.tasks,
        }
        mesh = self._settings.mesh.model_copy(update=live)
        outgoing = self._outgoing_of(mesh)
        outgoing.check_endpoints()
        names = await asyncio.to_thread(endpoint_profile_names, mesh)
        self._api_keys = await asyncio.to_thread(read_api_keys, mesh, os.environ)
        self._settings = self._settings.model_copy(update={"mesh": mesh})
        self._outgoing = outgoing
        self._topology.use_settings(_configured(mesh, names), is_alone=not mesh.redis_url)
        return changed & {f"mesh.{key}" for key in live}

    def _is_rated(self, task: str, tier: str) -> bool:
        mesh = self._settings.mesh
        return tier in mesh.tiers and any(each.name == task for each in mesh.tasks)

    def _refusal(self, field: str, address: str) -> Refusal | None:
        return self._outgoing.refusal(field, address)

    def _outgoing_of(self, mesh: MeshSettings) -> Outgoing:
        return Outgoing("load_monitor", mesh, self._own.insecure_open_to_network)

    async def _ready(self) -> None:
        await self._broadcast.after(0)

    def _register(self, server: grpc.aio.Server) -> None:
        servicer = LoadMonitorServicer(
            board=self._board,
            broadcast=self._broadcast,
            coordinator=self._coordinator,
            books=self._books,
            counters=self._counters,
            tiers=self._settings.mesh.tiers,
            tasks=lambda: self._settings.mesh.tasks,
            refusal=self._refusal,
            max_endpoints=self._own.max_endpoints,
            max_watchers=self._own.max_watchers,
            shared_certificate=self._own.shared_router_certificate,
            clock=self._clock,
            log=self._log,
        )
        pb_grpc.add_LoadMonitorServiceServicer_to_server(servicer, server)

    def _publisher(self) -> Publisher:
        published = self._counters.publications.labels(target="watchers")
        return Publisher(
            board=self._board,
            broadcast=self._broadcast,
            coordinator=self._coordinator,
            versions=self._versions,
            clock=self._clock,
            log=self._log,
            interval_s=self._own.publish_interval_s,
            idle_interval_s=self._own.idle_publish_interval_s,
            on_publication=lambda _picture: published.inc(),
        )

    def _prober(self) -> Prober:
        return Prober(
            board=self._board,
            connect=self._probe_client,
            times=ProbeTimes(
                gauge_interval_s=self._own.gauge_interval_s,
                ready_interval_s=self._own.ready_interval_s,
                timeout_s=self._own.probe_timeout_s,
            ),
            clock=self._clock,
            log=self._log,
            is_publishing=lambda: self._coordinator.is_publishing,
            supervisor=self._supervisor,
        )

    def _probe_client(self, spec: EndpointSpec) -> ProbeClient:
        tls = self._access.tls and self._access.tls.for_triton
        timeout_s = self._own.probe_timeout_s
        if spec.protocol is EndpointProtocol.OPENAI:
            return OpenAIClient(
                spec.address,
                control_timeout_s=timeout_s,
                most_idle_connections=1,
                tls=tls,
                api_key=lambda: self._api_keys.get(spec.address, ""),
            )
        return TritonClient(spec.address, control_timeout_s=timeout_s, tls=tls)

    def _collector(self, publisher: Publisher) -> MonitorCollector:
        return MonitorCollector(
            picture=lambda: publisher.picture,
            served=lambda: self._broadcast.latest,
            age_s=lambda: self._broadcast.age_s,
            role=lambda: self.role,
            books=lambda: self._books.last,
            degraded=self._degraded_reasons,
            watcher_count=lambda: self._broadcast.watcher_count,
            failed_probe_counts=lambda: tuple(
                (name, tracker.failed_probe_count)
                for name, tracker in tuple(self._board.trackers.items())
            ),
        )

    def _degraded_reasons(self) -> tuple[str, ...]:
        return (REDIS_UNREACHABLE,) if self._coordinator.store_available is False else ()


def _configured(mesh: MeshSettings, profile_names: Mapping[str, str]) -> dict[str, EndpointSpec]:
    return {
        entry.name: endpoint_of_settings(entry, profile_names.get(entry.name, ""))
        for entry in mesh.endpoints
    }


def build_app(settings: Settings) -> LoadMonitorApp:
    """Returns the load monitor; SettingsError if a file cannot be read or a key is missing."""
    app = LoadMonitorApp(
        settings=settings,
        profile_names=endpoint_profile_names(settings.mesh),
        clock=SystemClock(),
    )
    suit_requests()
    return app
