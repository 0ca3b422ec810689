"""Builds the trainer: the only place that constructs its parts."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
from contextlib import AsyncExitStack
from pathlib import Path

import grpc.aio

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES, SnapshotError, load_snapshot
from router.policies.dqn import DqnPolicy
from router.policies.table import LEARNED, known_policies
from router.sequential import Plan
from router.watch import WatchLimits
from services.common.access.access import load_access
from services.common.access.plain_text import Outgoing
from services.common.access.tls import Tls
from services.common.channels import open_channel
from services.common.clock import Clock, SystemClock
from services.common.files import read_bytes
from services.common.lifecycle import Running
from services.common.log import Logger, get_logger
from services.common.mesh_settings import MeshFiles, MeshSettings, load_mesh_files, placement
from services.common.metrics import new_registry, start_metrics_server
from services.common.process_id import new_process_id
from services.common.server import ServerSettings, ServiceDefinition, build_server
from services.common.settings import SettingsError
from services.common.state.connect import connect_stores
from services.common.supervision import Supervisor
from services.common.telemetry_setup import setup_telemetry
from services.trainer.gate import Gate
from services.trainer.hindsight import HindsightKeeper
from services.trainer.jobs import MeshSpec, OnlineJob, SimulationJob
from services.trainer.learned_quality import learned
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode
from services.trainer.online import OnlineTraining
from services.trainer.promotion import Promoter
from services.trainer.registry import PolicyRegistry
from services.trainer.rollout import RolloutLimits, Rollouts
from services.trainer.rollout_verdicts import ShadowLimits, SwitchPlan
from services.trainer.runs import RunBody, RunBook
from services.trainer.servicer import SERVICE_NAME, TrainerServicer
from services.trainer.settings import Settings, TrainerSettings
from services.trainer.simulated import SimulatedTraining
from services.trainer.turn import ROLLOUT_LEASE_NAME, Turn
from services.trainer.watch import Watches, WatchPlan
from services.trainer.worker import Worker
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

REDIS_HEALTH = f"{SERVICE_NAME}.redis"
"""Name under which grpc.health.v1 tells whether the registry's Redis is there."""
_GATE_SEED = 900_000
"""First of the gate's seeds; training seeds stay below."""


_CHANNEL_OPTIONS = (("grpc.max_receive_message_length", 32 * 1024 * 1024),)


class TrainerApplication:
    """The trainer as `services.common.lifecycle` runs it."""

    name = "trainer"

    def __init__(self, *, settings: Settings, files: MeshFiles, clock: Clock, log: Logger) -> None:
        """Takes the settings and what the mesh's files hold.

        Raises:
            SettingsError: A certificate is wrong, an address has no protection, or what is to be
                the data folder is something else.
        """
        folder = settings.trainer.data_dir
        if _is_no_folder(folder):  # else nothing learned could ever be saved
            raise SettingsError([f"trainer.data_dir: is no folder (got {str(folder)!r})"])
        self._settings = settings
        self._files = files
        self._clock = clock
        self._log = log
        leave = settings.trainer.insecure_open_to_network
        outgoing = Outgoing("trainer", settings.mesh, leave)
        self._access = load_access(
            "trainer",
            settings.trainer,
            settings.mesh.tls,
            settings.mesh.access,
            outgoing=outgoing.link_problems(["load_monitor_address"]),
            monotonic_s=clock.monotonic_s,
            log=log,
        )

    @property
    def server_settings(self) -> ServerSettings:
        """The `[trainer]` section."""
        return self._settings.trainer

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds everything; nothing here waits for Redis or for other services."""
        settings, clock, log = self._settings.trainer, self._clock, self._log
        prometheus = new_registry()
        metrics = TrainerMetrics(prometheus)
        stores = connect_stores(self._settings.mesh.redis_url, clock=clock)
        stack.push_async_callback(stores.close)
        built_in = [n for n in known_policies(self._files.catalog.tiers) if n not in LEARNED]
        registry = PolicyRegistry(
            store=stores.policies,
            built_in=built_in,
            clock=clock,
            log=log,
            metrics=metrics,
        )
        mesh = _mesh_view(self._settings.mesh, self._access.tls, clock, log, stack)
        promoter = Promoter(registry=registry, mesh=mesh, clock=clock, log=log)
        telemetry = setup_telemetry(self.name, environ=os.environ, rng=random.Random(), log=log)
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        owner = new_process_id()
        watches = Watches(
            registry=registry,
            mesh=mesh,
            plan=watch_plan(settings),
            telemetry=telemetry,
            metrics=metrics,
            clock=clock,
            log=log,
        )
        rollouts = Rollouts(
            registry=registry,
            promoter=promoter,
            mesh=mesh,
            turn=Turn(
                store=stores.shared, owner=owner, clock=clock, log=log, name=ROLLOUT_LEASE_NAME
            ),
            watches=watches,
            limits=rollout_limits(settings),
            telemetry=telemetry,
            metrics=metrics,
            clock=clock,
            log=log,
        )
        spec, tiers = mesh_spec(self._settings.mesh, self._files), self._files.catalog.tiers

        def with_ratings(spec: MeshSpec) -> MeshSpec:
            return learned(spec, tiers, mesh.ratings)

        evaluator = Worker(SimulationJob, (), nice=settings.worker_nice, log=log)
        stack.push_async_callback(evaluator.close)
        gate = Gate(
            evaluator=evaluator,
            spec=spec,
            margin=settings.gate_margin,
            priority_mix=dict(settings.gate_priority_mix.items()),
            seeds=range(_GATE_SEED, _GATE_SEED + settings.gate_seeds),
            timeout_s=settings.worker_timeout_s,
            promoter=promoter,
            rollouts=rollouts,
            rollout=settings.rollout,
            log=log,
            metrics=metrics,
            learned=with_ratings,
        )
        shipped = _shipped(settings.shipped_snapshot, log, metrics)
        online = OnlineTraining(
            settings=settings,
            deadline_s=spec.deadline_s,
            stream=stores.experience,
            turn=Turn(store=stores.shared, owner=owner, clock=clock, log=log),
            mesh=mesh,
            tasks=frozenset(task.name for task in self._files.catalog.tasks),
            registry=registry,
            gate=gate,
            clock=clock,
            log=log,
            metrics=metrics,
            fallback_initial=shipped,
            start_learner=lambda spec: Worker(
                OnlineJob, (spec,), nice=settings.worker_nice, log=log
            ),
        )
        stack.push_async_callback(online.close)
        hindsight = HindsightKeeper(
            stream=stores.experience,
            store=stores.minutes,
            reckoner=evaluator,
            spec=spec,
            mesh=mesh,
            tasks=frozenset(task.name for task in self._files.catalog.tasks),
            most_requests=settings.hindsight_max_requests,
            timeout_s=settings.worker_timeout_s,
            clock=clock,
            log=log,
            metrics=metrics,
            learned=with_ratings,
        )
        simulated = SimulatedTraining(
            settings=settings, spec=spec, registry=registry, gate=gate, log=log
        )
        bodies: dict[Mode, RunBody] = {Mode.ONLINE: online, Mode.SIMULATED: simulated}
        runs = RunBook(clock=clock, log=log, metrics=metrics, body_of=lambda mode: bodies[mode])
        stack.push_async_callback(runs.stop)
        servicer = TrainerServicer(
            registry=registry,
            promoter=promoter,
            gate=gate,
            rollouts=rollouts,
            canary_share=settings.canary_share,
            runs=runs,
            drop_replay=online.drop_replay,
            profiles=(self._files.profile.name,),
        )

        def register(server: grpc.aio.Server) -> None:
            pb_grpc.add_TrainerServiceServicer_to_server(servicer, server)

        server = await build_server(
            services=[
                ServiceDefinition(
                    SERVICE_NAME, register, watches=("WatchPolicies", "WatchTraining", "WatchTrial")
                )
            ],
            settings=settings,
            registry=prometheus,
            clock=clock,
            log=log,
            access=self._access,
        )
        metrics_address = ""
        if settings.metrics_listen:
            metrics_server = start_metrics_server(
                settings.metrics_listen, prometheus, hosts=self._settings.mesh.access.http_hosts
            )
            stack.push_async_callback(metrics_server.close)
            metrics_address = str(metrics_server.address)

        async def poll() -> None:
            async for reachable in registry.poll(settings.poll_interval_s):
                await server.set_serving(reachable, service=REDIS_HEALTH)

        async def ready() -> None:
            await _publish_shipped(registry, shipped, log)
            if settings.autostart_online:
                runs.keep(Mode.ONLINE, promote=settings.autostart_promote)

        return Running(
            server=server,
            supervisor=Supervisor(registry=prometheus, clock=clock, log=log),
            metrics_address=metrics_address,
            tasks={
                "registry": poll,
                "mesh_view": mesh.run,
                "rollout": rollouts.run,
                "hindsight": hindsight.run,
            },
            ready=ready,
            flush=runs.stop,
        )


def build_app(settings: Settings) -> TrainerApplication:
    """Reads the mesh's files and returns the service; raises SettingsError if one is wrong."""
    return TrainerApplication(
        settings=settings,
        files=load_mesh_files(settings.mesh),
        clock=SystemClock(),
        log=get_logger("services.trainer"),
    )


def mesh_spec(mesh: MeshSettings, files: MeshFiles) -> MeshSpec:
    """Returns the mesh as the simulator needs it; without endpoints one device with every tier."""
    return MeshSpec(
        profile=files.profile,
        quality=files.quality,
        tasks=files.catalog.tasks,
        deadline_s=statistics.median(task.default_deadline_s for task in files.catalog.tasks),
        devices=placement(mesh),
    )


def rollout_limits(settings: TrainerSettings) -> RolloutLimits:
    """Returns what a rollout must keep to."""
    return RolloutLimits(
        shadow=ShadowLimits(
            decisions=settings.shadow_decisions,
            decision_s=settings.shadow_decision_s,
            value_loss=settings.shadow_value_loss,
        ),
        # Values lie between -1 and 1: what an answer earns, less what its device time is worth.
        canary=Plan(alpha=settings.canary_alpha, smallest=settings.canary_effect, reach=2.0),
        switch=SwitchPlan(
            pairs=settings.switchback_pairs,
            period_s=settings.switchback_period_s,
            alpha=settings.canary_alpha,
        ),
        shadow_s=settings.shadow_s,
        canary_s=settings.canary_s,
    )


def watch_plan(settings: TrainerSettings) -> WatchPlan:
    """Returns how policies that become active are watched."""
    limits = WatchLimits(settings.watch_misses, settings.watch_errors)
    return WatchPlan(limits, settings.watch_s)


def _is_no_folder(path: Path) -> bool:
    """Returns whether something else is there; what cannot be looked at is said by a save."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False


def _mesh_view(
    mesh: MeshSettings, tls: Tls | None, clock: Clock, log: Logger, stack: AsyncExitStack
) -> MeshView:
    channel = None
    if mesh.load_monitor_address:
        channel = open_channel(mesh.load_monitor_address, _CHANNEL_OPTIONS, tls)
        stack.push_async_callback(channel.close)
    candidates = [(tier, each.name) for each in mesh.endpoints for tier in each.tiers]
    return MeshView(channel=channel, candidates=candidates, clock=clock, log=log)


def _shipped(path: str, log: Logger, metrics: TrainerMetrics) -> bytes | None:
    """Returns the shipped snapshot's bytes; a missing or bad one is logged, never fatal."""
    if not path:
        return None
    try:
        blob = read_bytes(Path(path), MAX_SNAPSHOT_BYTES)
        DqnPolicy(load_snapshot(blob, origin=path))
    except OSError as error:
        log.error("shipped_snapshot_unreadable", path=path, reason=error.strerror or str(error))
        return None
    except SnapshotError as error:
        metrics.snapshots_refused.labels(error.reason).inc()
        log.error("shipped_snapshot_refused", path=path, reason=str(error))
        return None
    return blob


async def _publish_shipped(registry: PolicyRegistry, shipped: bytes | None, log: Logger) -> None:
    if shipped is not None:
        record = await registry.publish(shipped, "shipped")
        log.info("shipped_snapshot", version=record.version)
