"""The router process: settings and files in, a served application out."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import grpc.aio
from prometheus_client import CollectorRegistry

from router.compiled import cache_folder
from services.common.access.access import load_access
from services.common.access.guard import address_without_port, authenticated_client
from services.common.access.plain_text import Outgoing
from services.common.addresses import parse_address
from services.common.channels import open_channel
from services.common.clock import Clock, SystemClock
from services.common.files import read_bytes
from services.common.interpreter import suit_requests
from services.common.lifecycle import Running
from services.common.log import Logger, get_logger
from services.common.mesh_settings import MeshFiles, load_mesh_files
from services.common.metrics import new_registry, start_metrics_server
from services.common.openai.keys import read_api_keys
from services.common.process_id import monotonic_clock_id, new_process_id
from services.common.server import (
    GRPC,
    OPERATE,
    ServerSettings,
    ServiceDefinition,
    build_server,
    check_port_is_free,
)
from services.common.settings import SettingsError
from services.common.state.connect import Stores, connect_stores
from services.common.supervision import BackgroundTask, Supervisor
from services.common.telemetry import Telemetry
from services.common.telemetry_setup import setup_telemetry
from services.router_inference import health_notes
from services.router_inference.client_pool import ClientPool
from services.router_inference.core import Core, Surroundings, build_core
from services.router_inference.doors.kserve import servicer as kserve_door
from services.router_inference.doors.servicer import READER_GRACE_S
from services.router_inference.machine_code import MachineCode, obtain, run_compiler
from services.router_inference.path.tickets import TicketSigner
from services.router_inference.policy.configured import as_settings_errors, configured
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.policy.trainer_link import PolicyLink
from services.router_inference.policy.trial_link import TrialLink
from services.router_inference.reconnect import CHANNEL_OPTIONS
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.reload import LiveSettings
from services.router_inference.settings import (
    RouterInferenceSettings,
    Settings,
    default_task,
)
from services.router_inference.view.monitor_link import MonitorLink
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import NoSiblings
from tiercel.envoy.v3 import external_processor_pb2 as envoy_pb2
from tiercel.envoy.v3 import external_processor_pb2_grpc as envoy_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

NAME = "router-inference"
ENVOY = "envoy"
"""Name of the address at which gateways ask."""
_SHORTEST_KEY_BYTES, _LONGEST_KEY_BYTES = 16, 1_024
SERVICE_NAME = pb2.DESCRIPTOR.services_by_name["RouterInferenceService"].full_name
_FLUSH_S = 2.0
_SAMPLER = "OTEL_TRACES_SAMPLER"


def build_app(settings: Settings) -> RouterInference:
    """Returns the router.

    Raises:
        SettingsError: With every mistake only the mesh's files can tell.
        StartError: A port is taken.
    """
    log, own = get_logger("services.router_inference"), settings.router_inference
    # What is wrong is said at once, and not after a minute of compiling.
    for setting, address in (("", own.listen), ("metrics_listen", own.metrics_listen)):
        if address:
            check_port_is_free(parse_address(address, allow_port_zero=True), setting)
    files = load_mesh_files(settings.mesh)
    app = RouterInference(settings=settings, files=files, clock=SystemClock(), log=log)
    if own.compiled:
        # Before any socket, thread or fork: no request waits, and workers share what is loaded.
        app.decide_by(obtain(log, cache_folder(), run_compiler))
    suit_requests()
    return app


class RouterInference:
    """The application: checked settings in, a running process out."""

    name = NAME

    def __init__(
        self,
        *,
        settings: Settings,
        files: MeshFiles,
        clock: Clock,
        log: Logger,
        telemetry: Telemetry | None = None,
        stores: Stores | None = None,
        machine_code: MachineCode | None = None,
    ) -> None:
        """Checks what only the files can tell.

        Args:
            settings: the settings.
            files: profiles, qualities.
            clock: of everything in the process.
            log: of everything in the process.
            telemetry: used instead of the environment's (tests).
            stores: used instead of the settings' Redis (tests).
            machine_code: of decisions; without it they are made in plain Python.

        Raises:
            SettingsError: policy, fallback, their parameters, the default task, a key or a
                certificate are wrong.
        """
        self.settings = settings
        self.core: Core | None = None
        self.clock = clock
        self._own = settings.with_room()
        self._files = files
        self._clock = clock
        self._log = log
        self._telemetry = telemetry
        self._stores = stores
        self._machine_code = machine_code or MachineCode()
        self._registry: CollectorRegistry = new_registry()
        self._metrics = RouterMetrics(self._registry)
        self._slot = self._make_slot()
        default_task(self._own, settings.mesh)  # raises where it is wrong
        self._signer = TicketSigner(ticket_key(self._own))
        self._outgoing = _outgoing_of(settings)
        self._access = load_access(
            "router_inference",
            self._own,
            settings.mesh.tls,
            settings.mesh.access,
            takes_keys=True,
            outgoing=self._outgoing.problems(("load_monitor_address", "trainer_address")),
            monotonic_s=clock.monotonic_s,
            log=log,
        )
        self._api_keys = read_api_keys(settings.mesh, os.environ)
        self._place: Place | None = None

    def decide_by(self, machine_code: MachineCode) -> None:
        """Has decisions made by compiled code; before `start`."""
        self._machine_code = machine_code

    def take_place(self, place: Place) -> None:
        """Becomes one of several workers; its parent serves the metrics of all."""
        self._place = place
        addresses = {
            "listen": place.listen,
            "operate_listen": place.operate_listen,
            "envoy_listen": place.envoy_listen,
        }
        self._own = self._own.model_copy(update={**addresses, "metrics_listen": ""})

    def successor(self, settings: Settings) -> RouterInference:
        """Returns a router of other settings, which workers to come are copies of.

        Raises:
            SettingsError: They are wrong.
        """
        other = RouterInference(
            settings=settings,
            files=load_mesh_files(settings.mesh),
            clock=self._clock,
            log=self._log,
            machine_code=self._machine_code,
        )
        own = settings.router_inference
        if not own.ticket_key and not own.ticket_key_file:
            other._signer = self._signer  # tickets handed out stay good
        return other

    @property
    def listens(self) -> dict[str, str]:
        """Where it is to listen, by what for."""
        own = self._own
        operate = {OPERATE: own.operate_listen} if self._access.is_split else {}
        envoy = {ENVOY: own.envoy_listen} if own.envoy_listen else {}
        return {GRPC: own.listen, **operate, **envoy}

    @property
    def server_settings(self) -> ServerSettings:
        """The section with address and drain times."""
        return self._own

    @property
    def registry(self) -> CollectorRegistry:
        """The process's metrics."""
        return self._registry

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds everything; see `services.common.lifecycle`."""
        own, mesh, clock, log = self._own, self.settings.mesh, self._clock, self._log
        telemetry = self._telemetry or _telemetry(own, log)
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        stores = self._stores
        if stores is None and mesh.redis_url:
            stores = connect_stores(mesh.redis_url, clock=clock)
        if stores is not None:
            stack.push_async_callback(stores.close)
        metrics_address = ""
        if own.metrics_listen:
            metrics_server = start_metrics_server(
                own.metrics_listen, self._registry, hosts=mesh.access.http_hosts
            )
            stack.push_async_callback(metrics_server.close)
            metrics_address = str(metrics_server.address)
        tls = self._access.tls
        clients = ClientPool(
            own.tier_cancel_grace_s,
            own.tier_idle_streams,
            tls and tls.for_triton,
            self._outgoing.may_be_endpoint,
            self._api_keys,
        )
        stack.push_async_callback(clients.close)
        place = self._place or Place(
            router_id=own.router_id or new_process_id(),
            epoch=clock.wall_ns(),
            siblings=NoSiblings(),
        )
        core = self.core = self.build_core(place, telemetry, stores, clients)
        server = await build_server(
            services=_services(core, own),
            settings=own,
            registry=self._registry,
            clock=clock,
            log=log,
            access=self._access,
            reuse_port=bool(place.number),
            on_bad_message=core.accounts.on_invalid,
            longest_call_s=own.max_deadline_s + own.soft_late_s + READER_GRACE_S,
        )
        tasks: dict[str, BackgroundTask] = {
            "leases": core.leases.run,
            "loop_lag": core.lag.run,
            "status": core.status.run,
            "experience": core.experience.run,
            "quality": core.quality.run,
            **({"http_names": core.picker.places.names.run} if core.picker is not None else {}),
            **self._links(core, place, stores, stack),
        }
        if place.number:
            tasks["counts"] = partial(_show_counts, core, clock, own.report_interval_s)

        async def flush() -> None:
            core.counts.show(is_last=True)
            await core.experience.flush(_FLUSH_S)

        return Running(
            server=server,
            supervisor=Supervisor(registry=self._registry, clock=clock, log=log),
            metrics_address=metrics_address,
            tasks=tasks,
            ready=partial(_until_ready, core, clock),
            flush=flush,
            take_settings=LiveSettings(self.settings, self._files, core, clients).take,
        )

    def build_core(
        self, place: Place, telemetry: Telemetry, stores: Stores | None, clients: ClientPool
    ) -> Core:
        """Builds what needs no socket; tests give it clients of their own."""
        return build_core(
            Surroundings(
                settings=self.settings,
                files=self._files,
                place=place,
                clock=self._clock,
                log=self._log,
                registry=self._registry,
                metrics=self._metrics,
                telemetry=telemetry,
                experience=None if stores is None else stores.experience,
                clients=clients,
                slot=self._slot,
                machine_code=self._machine_code,
                signer=self._signer,
                client_of=(
                    address_without_port
                    if self._access.authenticator is None
                    else authenticated_client
                ),
                clock_id=monotonic_clock_id(),
            )
        )

    def _links(
        self, core: Core, place: Place, stores: Stores | None, stack: AsyncExitStack
    ) -> dict[str, BackgroundTask]:
        own, mesh, clock, log = self._own, self.settings.mesh, self._clock, self._log
        tasks: dict[str, BackgroundTask] = {}
        if mesh.load_monitor_address:
            channel = self._channel(mesh.load_monitor_address, stack)
            monitor = MonitorLink(
                channel=channel,
                router_id=place.router_id,
                epoch=place.epoch,
                view=core.view,
                counts=core.counts,
                targets=core.targets,
                attainments=core.attainments,
                hold=core.hold,
                siblings=place.siblings,
                slot=core.slot,
                trial=core.trial,
                watch=core.watch,
                quality=core.quality,
                notes=core.notes,
                clock=clock,
                log=log,
                report_interval_s=own.report_interval_s,
                silence_s=max(5.0, own.state_max_age_s),
                longest_wait_s=own.reconnect_s,
            )
            tasks |= {"state_watch": monitor.watch, "traffic_report": monitor.report}
        if own.follow_trainer and (mesh.trainer_address or stores is not None):
            trainer = self._channel(mesh.trainer_address, stack) if mesh.trainer_address else None
            link = PolicyLink(
                channel=trainer,
                store=None if stores is None else stores.policies,
                slot=core.slot,
                notes=core.notes,
                clock=clock,
                log=log,
                longest_wait_s=own.reconnect_s,
            )
            tasks |= {"policy_watch": link.watch, "policy_registry": link.read_registry}
            if trainer is not None:
                trial_link = TrialLink(
                    channel=trainer,
                    trial=core.trial,
                    watch=core.watch,
                    clock=clock,
                    log=log,
                    longest_wait_s=own.reconnect_s,
                )
                tasks |= {"trial_watch": trial_link.watch, "trial": core.trial.run}
                tasks["after_activation"] = core.watch.run
        return tasks

    def _channel(self, address: str, stack: AsyncExitStack) -> grpc.aio.Channel:
        channel = open_channel(address, CHANNEL_OPTIONS, self._access.tls)
        stack.push_async_callback(channel.close)
        return channel

    def _make_slot(self) -> PolicySlot:
        policies = configured(self._own, self._files.catalog)
        with as_settings_errors(self._own):
            return PolicySlot(**policies, metrics=self._metrics, log=self._log)


def _services(core: Core, own: RouterInferenceSettings) -> list[ServiceDefinition]:
    """Returns what is served where."""
    services = [
        ServiceDefinition(
            SERVICE_NAME,
            partial(pb2_grpc.add_RouterInferenceServiceServicer_to_server, core.servicer),
        ),
        ServiceDefinition(
            kserve_door.SERVICE_NAME,
            partial(kserve_door.register, core.kserve),
            on_stop=core.kserve.leave,
        ),
    ]
    if core.picker is not None:
        services.append(
            ServiceDefinition(
                envoy_pb2.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name,
                partial(envoy_grpc.add_ExternalProcessorServicer_to_server, core.picker),
                listen=own.envoy_listen,
                place=ENVOY,
                health_names=("readiness",),
                on_stop=core.picker.leave,
            )
        )
    return services


async def _show_counts(core: Core, clock: Clock, interval_s: float) -> None:
    """Lets the others, and the successor of one that is killed, know counts and pressure."""
    while True:
        core.counts.show()
        core.hold.share(clock.monotonic_s())
        await clock.sleep(interval_s)


async def _until_ready(core: Core, clock: Clock) -> None:
    """Returns once there is a policy and at least one endpoint to send to."""
    while not core.view.fleet.targets:
        core.notes.set(health_notes.NO_USABLE_ENDPOINT, True, "no endpoint is known yet")
        await clock.sleep(0.02)
    core.hold.begin(clock.monotonic_s())


def _telemetry(own: RouterInferenceSettings, log: Logger) -> Telemetry:
    # The SDK reads its sampler from the process's environment; ours is the default there.
    if _SAMPLER not in os.environ:
        os.environ[_SAMPLER] = "parentbased_traceidratio"
        os.environ[f"{_SAMPLER}_ARG"] = str(own.sample_ratio)
    rng = random.Random()
    return setup_telemetry(NAME, environ=os.environ, rng=rng, log=log, folder=own.trace_folder)


def _outgoing_of(settings: Settings) -> Outgoing:
    """Returns where a router of these settings may send prompts."""
    own = settings.router_inference
    return Outgoing("router_inference", settings.mesh, own.insecure_open_to_network)


def ticket_key(own: RouterInferenceSettings) -> bytes:
    """Returns the key of the settings, of its file, or a new one.

    Raises SettingsError if the file is wrong.
    """
    if own.ticket_key:
        return own.ticket_key.encode()
    if not own.ticket_key_file:
        return secrets.token_bytes(32)
    origin = "router_inference.ticket_key_file"
    try:
        key = read_bytes(Path(own.ticket_key_file), _LONGEST_KEY_BYTES).strip()
    except OSError as error:
        raise SettingsError([f"{origin}: cannot be read: {error.strerror or error}"]) from None
    if not _SHORTEST_KEY_BYTES <= len(key) <= _LONGEST_KEY_BYTES:
        allowed = f"{_SHORTEST_KEY_BYTES} to {_LONGEST_KEY_BYTES} bytes"
        raise SettingsError([f"{origin}: {own.ticket_key_file}: must have {allowed}"])
    return key
