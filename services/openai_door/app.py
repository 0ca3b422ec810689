"""Builds the door out of its parts; the only place that does."""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack

from services.common.access.access import exposure_problems, load_authenticator
from services.common.access.tls import load_tls
from services.common.addresses import parse_address
from services.common.clock import Clock, SystemClock
from services.common.http_host import own_hosts
from services.common.interpreter import suit_requests
from services.common.lifecycle import Running
from services.common.log import Logger, get_logger
from services.common.metrics import new_registry, start_metrics_server
from services.common.service_settings import ServiceSettings
from services.common.settings import SettingsError
from services.common.supervision import Supervisor
from services.common.telemetry import Telemetry
from services.common.telemetry_setup import setup_telemetry
from services.openai_door.chat_template import TEMPLATES, ChatTemplate
from services.openai_door.gate import Gate
from services.openai_door.generation import Generation, Surroundings
from services.openai_door.http_server import HttpLimits, HttpServer
from services.openai_door.metrics import DoorMetrics
from services.openai_door.models import ModelNames
from services.openai_door.pages import Pages
from services.openai_door.request import RequestReader
from services.openai_door.routers import Routers
from services.openai_door.settings import OpenAiDoorSettings, Settings

NAME = "openai-door"
_REFUSED = "refused"
"""Route, for metrics, of what is refused before its path is known."""


class OpenAiDoor:
    """The application.

    Args:
        settings: Its settings.
        clock: The clock.
        log: Where it logs.
        telemetry: Used instead of the environment's (tests).

    Raises:
        SettingsError: A certificate or a file of keys is wrong, or an address has no protection.
    """

    name = NAME

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        log: Logger,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._mesh = settings.mesh
        self._own = settings.openai_door
        self._max_body_bytes = settings.max_body_bytes
        self._clock = clock
        self._log = log
        self._telemetry = telemetry
        self._registry = new_registry()
        self._metrics = DoorMetrics(self._registry)
        self._tls = load_tls(
            self._mesh.tls, monotonic_s=clock.monotonic_s, wall_s=time.time, log=log
        )
        authenticator = load_authenticator(
            self._mesh.access, {}, monotonic_s=clock.monotonic_s, log=log
        )
        if not self._own.insecure_open_to_network:
            is_known, has_tls = authenticator is not None, self._tls is not None
            problems = exposure_problems(
                "openai_door", {"listen": self._own.listen}, has_tls=has_tls, is_known=is_known
            )
            problems += _router_problems(self._own, has_tls=has_tls)
            if problems:
                raise SettingsError(problems)
        hosts = self._mesh.access.http_hosts
        self._gate = Gate(authenticator, own_hosts(self._own.listen, hosts))
        self._has_router = True

    @property
    def server_settings(self) -> ServiceSettings:
        """Its section."""
        return self._own

    def _count_routers(self, count: int) -> None:
        """Notes how many routers serve; says when none does, and when one does again."""
        self._metrics.routers_serving.set(count)
        if bool(count) == self._has_router:
            return
        self._has_router = bool(count)
        if count:
            self._log.info("routers_serve_again", count=count)
        else:
            asked = ",".join(self._own.routers)
            self._log.warning("no_router_serves", routers=asked, setting="openai_door.routers")

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds what needs a running loop."""
        telemetry = self._telemetry or setup_telemetry(
            NAME,
            environ=os.environ,
            rng=random.SystemRandom(),
            log=self._log,
            sample_ratio=self._own.sample_ratio,
            folder=self._own.trace_folder,
        )
        stack.push_async_callback(asyncio.to_thread, telemetry.close)
        routers = Routers(
            self._own.routers,
            tls=self._tls,
            clock=self._clock,
            check_interval_s=self._own.router_check_interval_s,
            on_change=self._count_routers,
        )
        stack.push_async_callback(routers.close)
        server = self._server(routers, telemetry)
        server.bind()
        self._metrics.connections.set_function(lambda: server.connection_count)
        loop = asyncio.get_running_loop()
        self._metrics.loop_tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
        metrics_address = ""
        if self._own.metrics_listen:
            metrics = start_metrics_server(
                self._own.metrics_listen, self._registry, hosts=self._mesh.access.http_hosts
            )
            stack.push_async_callback(metrics.close)
            metrics_address = str(metrics.address)
        return Running(
            server=server,
            supervisor=Supervisor(registry=self._registry, clock=self._clock, log=self._log),
            metrics_address=metrics_address,
            tasks={"routers": routers.watch, "certificates": server.follow_certificates},
            ready=routers.ready,
        )

    def _server(self, routers: Routers, telemetry: Telemetry) -> HttpServer:
        """Returns the server with the application that answers."""
        own = self._own
        server = HttpServer(
            listen=own.listen,
            limits=HttpLimits(
                max_connections=own.max_connections,
                max_header_bytes=own.max_header_bytes,
                head_timeout_s=own.head_timeout_s,
                keep_alive_s=own.keep_alive_s,
                write_stall_s=own.write_stall_s,
            ),
            tls=self._tls,
            tls_settings=self._mesh.tls,
            clock=self._clock,
            log=self._log,
            on_refusal=lambda code, status: self._metrics.count(_REFUSED, status, code),
        )
        models = ModelNames(tasks=[task.name for task in self._mesh.tasks], tiers=self._mesh.tiers)
        reader = RequestReader(models=models, template=template_of(own))
        shared = self._surroundings(routers, telemetry)
        is_local = parse_address(own.listen, allow_port_zero=True).is_loopback
        pages = Pages(
            models=models,
            created=self._clock.wall_ns() // 1_000_000_000,
            gate=self._gate,
            metrics=self._metrics,
            registry=self._registry if is_local else None,
            is_serving=lambda: server.is_serving and routers.are_serving,
            log=self._log,
        )
        readers = {"/v1/chat/completions": reader.chat, "/v1/completions": reader.completion}
        prompts = {path: Generation(path, read, shared) for path, read in readers.items()}
        server.use(pages.application(prompts))
        return server

    def _surroundings(self, routers: Routers, telemetry: Telemetry) -> Surroundings:
        chance = random.Random(random.SystemRandom().getrandbits(128))
        return Surroundings(
            routers=routers,
            gate=self._gate,
            tasks={task.name: task for task in self._mesh.tasks},
            bytes_per_token=self._mesh.bytes_per_token,
            max_body_bytes=self._max_body_bytes,
            body_timeout_s=self._own.body_timeout_s,
            router_timeout_s=self._own.router_timeout_s,
            clock=self._clock,
            telemetry=telemetry,
            metrics=self._metrics,
            log=self._log,
            new_id=lambda: f"{chance.getrandbits(96):024x}",
        )


def template_of(settings: OpenAiDoorSettings) -> ChatTemplate:
    """Returns the template that the settings name."""
    if settings.chat_template != "own":
        return TEMPLATES[settings.chat_template]
    own = settings.own_template
    forms = {"system": own.system, "user": own.user, "assistant": own.assistant}
    return ChatTemplate(begin=own.begin, forms=forms, joint="", answer=own.answer)


def _router_problems(own: OpenAiDoorSettings, *, has_tls: bool) -> list[str]:
    """Returns a line for each router to which prompts and keys would go in plain text."""
    return [
        f"openai_door.routers: {address} is on another machine, which needs TLS ([mesh.tls]);"
        " openai_door.insecure_open_to_network = true sends prompts and keys in plain text"
        for address in own.routers
        if not has_tls and not parse_address(address).is_loopback
    ]


def build_app(settings: Settings) -> OpenAiDoor:
    """Returns the door; SettingsError if a certificate or a file of keys cannot be used."""
    log = get_logger("services.openai_door")
    door = OpenAiDoor(settings=settings, clock=SystemClock(), log=log)
    suit_requests()
    return door
