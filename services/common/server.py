"""The one builder of gRPC servers: same limits, health, reflection and errors for every service."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from pydantic import Field

from services.common import health
from services.common.access.access import Access
from services.common.access.guard import Guard
from services.common.addresses import HostPort, ListenAddress, parse_address
from services.common.channels import NOT_PACKED
from services.common.clock import Clock
from services.common.health import HealthServicer
from services.common.interceptors import ErrorInterceptor
from services.common.log import Logger
from services.common.metrics import RpcMetrics
from services.common.running_calls import RunningCalls
from services.common.service_settings import ServiceSettings
from services.common.start_error import StartError

# The library's own limits answer without details and without a count, so they only guard memory;
# ours come first.
_LIBRARY_LIMIT_FACTOR = 4
_LIBRARY_PENDING_CALLS = 100_000
_REFUSED_AT_ONCE = 10_000
"""Calls of one connection beyond those that may run; further ones wait at their client."""
GRPC, OPERATE = "grpc", "operate"
"""Names of a server's own addresses."""
LIVENESS = "liveness"
"""Name by which health says that the process answers, ready or not."""
_MS_PER_S = 1_000
_QUIET_S, _LOOK_S = 1.0, 0.05
"""A stop ends once no request has been under way for so long, looked at so often, seconds."""
_UNPROTECTED = Access()
_OWN_WATCHES = (
    f"{health.SERVICE_NAME}/Watch",
    f"{reflection.SERVICE_NAME}/ServerReflectionInfo",
)


class ServerSettings(ServiceSettings):
    """Keys every section of a gRPC service has; a service's section extends it."""

    listen: ListenAddress
    """gRPC address; port 0 takes any free one."""
    operate_listen: ListenAddress = "127.0.0.1:0"
    """gRPC address of operating calls, used where callers are authenticated or `listen` is not
    loopback; elsewhere they are served at `listen`."""
    insecure_open_to_network: bool = False
    """True serves whoever reaches `listen` and `operate_listen`, without TLS or authentication,
    and sends what it has for endpoints, services and Redis of other machines in plain text."""
    client_certificates: bool = True
    """True has every caller show a certificate signed by `mesh.tls.root_certificates`.

    Without `[mesh.tls]` it means nothing.
    """
    max_message_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024)
    """Largest request message, bytes."""
    max_concurrent_calls: int = Field(default=8_192, ge=1, le=50_000)
    """Most calls at a time; more are refused with RESOURCE_EXHAUSTED and a time to retry.

    Watches have as much room of their own, and those of health, which strangers may open, too.
    """
    max_connection_age_s: float = Field(default=60.0, ge=0.5, le=86_400.0)
    """Age (give or take a tenth) at which a client is asked to connect anew, seconds.

    Its calls go on to their end. Clients that balance by DNS find added replicas that way.
    """


@dataclass(frozen=True, slots=True)
class ServiceDefinition:
    """One gRPC service to serve.

    Args:
        full_name: Its protobuf name, e.g. `tiercel.trainer.v1.TrainerService`.
        register: Adds the servicer to a server (a stand-in that only takes handlers).
        watches: Methods whose calls serve nobody's request: a stop ends them at once.
        listen: An address of its own, where every caller shows a certificate if there is TLS;
            empty serves it at the server's.
        place: Name of that address.
        health_names: Further names that its health is asked by.
        on_stop: Called when a stop ends the watches, for calls that serve one request after
            another: they end once those under way have ended.
    """

    full_name: str
    register: Callable[[grpc.aio.Server], None]
    watches: tuple[str, ...] = ()
    listen: str = ""
    place: str = ""
    health_names: tuple[str, ...] = ()
    on_stop: Callable[[], None] = lambda: None


class _Listener:
    """One address that a server's services are served at."""

    def __init__(
        self, place: str, server: grpc.aio.Server, wanted: HostPort, credentials: Any
    ) -> None:
        self.place = place
        self.server = server
        self.address = wanted
        self.is_bound = False
        self._credentials = credentials

    def bind(self) -> None:
        """Listens; raises StartError if that is not possible."""
        try:
            if self._credentials is None:
                port = self.server.add_insecure_port(str(self.address))
            else:
                port = self.server.add_secure_port(str(self.address), self._credentials)
        except RuntimeError:
            raise StartError(
                f"cannot listen on {self.address}: the address is in use or not of this machine"
            ) from None
        self.is_bound = True
        self.address = HostPort(self.address.host, port)


class GrpcServer:
    """A built server with its health; starts, reports SERVING, and stops."""

    def __init__(
        self,
        listeners: Sequence[_Listener],
        health_servicer: HealthServicer,
        services: Sequence[ServiceDefinition],
        calls: RunningCalls,
    ) -> None:
        self._listeners = listeners
        self._calls = calls
        self._health = health_servicer
        self._services = services
        names = (name for each in services for name in (each.full_name, *each.health_names))
        self._names = ("", *names)

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        return self._listeners[0].address

    @property
    def addresses(self) -> dict[str, HostPort]:
        """Where it listens, by what for; `grpc` is `address`."""
        return {listener.place: listener.address for listener in self._listeners}

    def bind(self) -> None:
        """Listens, so that the addresses are known and its own; calls wait until `start`.

        Raises:
            StartError: An address cannot be listened on.
        """
        for listener in self._listeners:
            listener.bind()

    async def start(self) -> None:
        """Accepts calls; health says NOT_SERVING until `set_serving`."""
        for listener in self._listeners:
            if not listener.is_bound:
                listener.bind()
            await listener.server.start()

    async def set_serving(self, serving: bool, *, service: str | None = None) -> None:
        """Sets the health of every service of the server, or of one named service only."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if serving
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._names if service is None else (service,):
            self._health.set(name, status)

    async def enter_drain(self) -> None:
        """Says NOT_SERVING for good; later changes of health are ignored."""
        self._health.drain()

    def end_watches(self) -> None:
        """Ends the calls that serve nobody's request, so that `stop` need not wait for them."""
        self._calls.end_watches()
        for service in self._services:
            service.on_stop()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end for `grace_s` seconds, then cancels them.

        Who holds a connection, or a call that has no message yet, without a request under way is
        not waited for: the library would, for the whole time.
        """
        servers = [listener.server for listener in self._listeners]
        stopping = asyncio.gather(*(server.stop(grace_s) for server in servers))
        quiet_s = 0.0
        while quiet_s < _QUIET_S:
            await asyncio.wait([stopping], timeout=_LOOK_S)
            if stopping.done():
                break
            quiet_s = 0.0 if self._calls.serving_count else quiet_s + _LOOK_S
        else:
            await asyncio.gather(*(server.stop(0.0) for server in servers))
        await stopping


async def build_server(
    *,
    services: Sequence[ServiceDefinition],
    settings: ServerSettings,
    registry: CollectorRegistry,
    clock: Clock,
    log: Logger,
    access: Access = _UNPROTECTED,
    reuse_port: bool = False,
    on_bad_message: Callable[[str], None] = lambda _: None,
    longest_call_s: float | None = None,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> GrpcServer:
    """Builds a server with health, reflection and the error table, bound but not started.

    One that shares its port is bound when it starts: the kernel hands it connections from then on.

    Args:
        services: What to serve.
        settings: Address and limits.
        registry: Where its calls are counted.
        clock: For durations.
        log: Where bugs are logged.
        access: Its certificates and callers.
        reuse_port: True lets several worker processes listen on one port (SO_REUSEPORT).
        on_bad_message: Told the reason of each message that is too large or malformed.
        longest_call_s: Longest time an honest call takes, seconds; None where calls have no end. A
            connection that has come of age lives so much longer at most: of a call whose answer is
            not read, only the end of its connection frees what the library holds.
        interceptors: The library's interceptors; they run before the error table.

    Raises:
        StartError: The address cannot be listened on.
    """
    calls = RunningCalls(settings.max_concurrent_calls)
    metrics = RpcMetrics(registry)
    metrics.running.set_function(lambda: calls.count)
    loop = asyncio.get_running_loop()
    metrics.loop_tasks.set_function(lambda: len(asyncio.all_tasks(loop)))
    watches = {f"{each.full_name}/{name}" for each in services for name in each.watches}
    options = _options(settings, longest_call_s, reuse_port=reuse_port)
    health_servicer = HealthServicer()

    def listener(
        place: str,
        address: str,
        guard: Guard,
        served: Sequence[ServiceDefinition],
        *,
        asks: bool,
    ) -> _Listener:
        """Makes a server with services behind a guard; `asks` for client certificates."""
        # Who has to show a certificate is known before it may call.
        by_key = access.authenticator if access.tls is None or not asks else None
        table = ErrorInterceptor(
            metrics=metrics,
            clock=clock,
            log=log,
            max_message_bytes=settings.max_message_bytes,
            calls=calls,
            watches=frozenset(watches.union(_OWN_WATCHES)),
            open_watches=frozenset({f"{health.SERVICE_NAME}/Watch"}),
            guard=guard,
            is_stranger=None if by_key is None else by_key.is_stranger,
            on_bad_message=on_bad_message,
        )
        server = grpc.aio.server(interceptors=interceptors, options=options)
        registrar = table.around(server)
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, registrar)
        for service in served:
            service.register(registrar)
        own = [service.full_name for service in served]
        reflected = (*own, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(reflected), registrar
        )
        table.answer_the_rest(server)
        credentials = None
        if access.tls is not None:
            credentials = access.tls.server_credentials(with_client_certificates=asks)
        wanted = parse_address(address, allow_port_zero=True)
        if not reuse_port:
            check_port_is_free(wanted)
        return _Listener(place, server, wanted, credentials)

    at_home = [service for service in services if not service.listen]
    elsewhere = settings.operate_listen if access.is_split else ""
    guard = Guard(access.authenticator, elsewhere, log)
    asks = settings.client_certificates
    listeners = [listener(GRPC, settings.listen, guard, at_home, asks=asks)]
    known = Guard(access.authenticator, log=log)
    if elsewhere:
        listeners.append(listener(OPERATE, elsewhere, known, at_home, asks=True))
    listeners.extend(
        listener(each.place, each.listen, known, [each], asks=True)
        for each in services
        if each.listen
    )
    built = GrpcServer(listeners, health_servicer, services, calls)
    if not reuse_port:
        built.bind()
    await built.set_serving(False)
    health_servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
    return built


def _options(
    settings: ServerSettings, longest_call_s: float | None, *, reuse_port: bool
) -> list[tuple[str, int]]:
    library_limit = settings.max_message_bytes * _LIBRARY_LIMIT_FACTOR
    options = [
        ("grpc.so_reuseport", int(reuse_port)),
        ("grpc.max_receive_message_length", library_limit),
        # In as many calls as there may be, before anybody is asked who calls.
        *NOT_PACKED,
        # What we send is bounded where it is made.
        ("grpc.max_send_message_length", -1),
        # Calls that wait to be taken up: beyond, the library cancels them (its default is 1,000).
        ("grpc.server.max_pending_requests", _LIBRARY_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _LIBRARY_PENDING_CALLS),
        # More than may run, so that it is us who refuse; still a bound to what one client can hold.
        ("grpc.max_concurrent_streams", settings.max_concurrent_calls + _REFUSED_AT_ONCE),
        # Without an end to the grace that follows, no call is ever cut.
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * _MS_PER_S)),
        # Clients may ping every 5 s, also without calls, so that they notice a dead server soon.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # What is gone without a word is noticed too, with calls or without.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if longest_call_s is not None:
        options.append(("grpc.max_connection_age_grace_ms", round(longest_call_s * _MS_PER_S)))
    return options


def check_port_is_free(address: HostPort, setting: str = "") -> None:
    """Raises StartError if the port is taken: the library says so in many lines, we in one.

    Args:
        address: Where to listen.
        setting: Which setting to change then; empty where the address is the service's main one.
    """
    if not address.port:
        return
    try:
        family = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        cause = (
            "the port is in use" + (f"; name another in {setting}" if setting else "")
            if error.errno == errno.EADDRINUSE
            else (os.strerror(error.errno) if error.errno else str(error))
        )
        raise StartError(f"cannot listen on {address}: {cause}") from None
