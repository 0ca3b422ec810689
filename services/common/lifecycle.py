"""Life of a service process: start, serve, drain on a signal, close in reverse order.

SIGTERM and SIGINT drain; SIGHUP reads the settings again.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn, Protocol, TypeVar

import uvloop

from services.common.addresses import HostPort
from services.common.arguments import parse_arguments
from services.common.files import write_whole
from services.common.log import Logger, LogSettings, configure_logging, get_logger
from services.common.reload import SettingsSource, Take, take_nothing
from services.common.service_settings import ServiceSettings
from services.common.settings import (
    SettingsError,
    SettingsModel,
    exit_with_settings_error,
    load_settings,
    misspelled_variables,
)
from services.common.standard_streams import hold_standard_streams
from services.common.start_error import StartError
from services.common.stopping import end, within
from services.common.supervision import BackgroundTask, Supervisor

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SIGNAL_EXIT_BASE = 128
FAILURE_EXIT_CODE = 1
_READY_FILE_RETRY_S = 1.0
_SERVER_S, _FLUSH_S = 2.0, 5.0
"""Longest times that a stop waits for the server beyond `grace_s`, and for the flush, seconds."""

AnySettings = TypeVar("AnySettings", bound=SettingsModel)


async def _at_once() -> None:
    return None


class Server(Protocol):
    """What a service is reached by: gRPC's server, or one of HTTP."""

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        ...

    @property
    def addresses(self) -> Mapping[str, HostPort]:
        """All of them by what for, `address` by what it speaks: `grpc` or `http`."""
        ...

    async def start(self) -> None:
        """Accepts calls; its health says NOT_SERVING until `set_serving`."""
        ...

    async def set_serving(self, serving: bool) -> None:
        """Says whether it serves."""
        ...

    async def enter_drain(self) -> None:
        """Says NOT_SERVING for good."""
        ...

    def end_watches(self) -> None:
        """Ends the calls that serve nobody's request."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls, lets running ones end for `grace_s` seconds, then cancels them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What an application hands over once it is built.

    Args:
        server: The server, bound, not started.
        supervisor: Runs the long tasks; readiness follows it.
        metrics_address: Where metrics are served; empty if they are not.
        tasks: Long tasks by name; they live in one task group.
        ready: Returns once the service may say SERVING (policy loaded, first state seen); tried
            again if it fails.
        flush: Called after the last call has ended and before the tasks are cancelled.
        on_serving: Called once the service says SERVING.
        listens_when_ready: True listens no sooner than it is ready (others answer meanwhile).
        take_settings: Puts settings that were read again into force.
    """

    server: Server
    supervisor: Supervisor
    metrics_address: str = ""
    tasks: Mapping[str, BackgroundTask] = field(default_factory=dict)
    ready: BackgroundTask = _at_once
    flush: Callable[[], Awaitable[None]] = _at_once
    on_serving: Callable[[], None] = lambda: None
    listens_when_ready: bool = False
    take_settings: Take = take_nothing


class Application(Protocol):
    """A service to run."""

    @property
    def name(self) -> str:
        """Name of the process, e.g. `load-monitor`."""
        ...

    @property
    def server_settings(self) -> ServiceSettings:
        """Its section; gives the drain times."""
        ...

    async def start(self, stack: AsyncExitStack) -> Running:
        """Builds everything; what must be closed is pushed on `stack` (closed in reverse order)."""
        ...


AnyApplication = TypeVar("AnyApplication", bound=Application)


def run(
    application: Application,
    *,
    log: Logger,
    ready_file: Path | None = None,
    stop: asyncio.Event | None = None,
    source: SettingsSource | None = None,
) -> int:
    """Runs an application until a signal and returns the exit code of the process.

    A second signal ends the process at once.

    Args:
        application: What to run.
        log: Where the life of the process is logged.
        ready_file: Written with the bound addresses as JSON once SERVING; removed at the drain.
        stop: Stops it as a signal does once it is set.
        source: Where settings are read again on SIGHUP; without one it does nothing.
    """
    serving = serve(application, log=log, ready_file=ready_file, stop=stop, source=source)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serving)
    except SettingsError as error:
        exit_with_settings_error(error)
    except StartError as error:
        return _cannot_start(application.name, error)
    except Exception as error:
        log.exception("failed", error)
        return FAILURE_EXIT_CODE


def _cannot_start(name: str, error: StartError) -> int:
    sys.stderr.write(f"{name}: {error}\n")
    return FAILURE_EXIT_CODE


def _run_one_process(
    application: Application, log: Logger, ready_file: Path | None, source: SettingsSource
) -> int:
    return run(application, log=log, ready_file=ready_file, source=source)


def run_service(
    *,
    name: str,
    description: str,
    settings_type: type[AnySettings],
    build: Callable[[AnySettings], AnyApplication],
    run_it: Callable[[AnyApplication, Logger, Path | None, SettingsSource], int] = _run_one_process,
    options: Mapping[str, str] = MappingProxyType({}),
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Whole life of a service process: command line, settings, logs, run, exit code.

    Exit codes: 0 after an orderly stop, 1 if it could not start or failed, 2 for wrong settings.

    Args:
        name: Name of the process, e.g. `load-monitor`; its section is the same with underscores.
        description: One sentence for `--help`.
        settings_type: Root settings model; it has a field `log` of type LogSettings.
        build: Makes the application from the settings; may raise SettingsError and StartError.
        run_it: Runs it and returns the exit code; gets the application, the log, the ready file,
            and where to read settings again.
        options: Keys of its section with an option of their own, and what `--help` says of each.
        argv: Command line without the program's name; None means the process's own.
    """
    hold_standard_streams()
    arguments = parse_arguments(
        program=name,
        section=name.replace("-", "_"),
        description=description,
        options=options,
        argv=argv,
    )

    def read() -> AnySettings:
        return load_settings(
            settings_type,
            path=arguments.config,
            environ=os.environ,
            overrides=arguments.overrides,
        )

    try:
        settings = read()
        _log_as_set(name, settings)
        for wrong, right in misspelled_variables(settings_type, os.environ).items():
            get_logger(name).warning("variable_ignored", variable=wrong, meant=right)
        application = build(settings)
    except SettingsError as error:
        exit_with_settings_error(error)
    except StartError as error:
        sys.exit(_cannot_start(name, error))
    source = SettingsSource(settings, read)
    sys.exit(run_it(application, get_logger(name), arguments.ready_file, source))


def _log_as_set(service: str, settings: SettingsModel) -> None:
    log = getattr(settings, "log", LogSettings())
    configure_logging(service=service, log_format=log.format, level=log.level)


async def serve(
    application: Application,
    *,
    log: Logger,
    ready_file: Path | None = None,
    stop: asyncio.Event | None = None,
    source: SettingsSource | None = None,
) -> int:
    """Runs an application inside a running loop; see `run`.

    Raises:
        StartError: It cannot start.
    """
    if ready_file is not None:
        # One left by a crash would send its readers to addresses of a dead process.
        remove_ready_file(ready_file)
        if not os.access(ready_file.parent, os.W_OK):
            raise StartError(f"cannot write the ready file {ready_file}: no such writable folder")
    stop = stop or asyncio.Event()
    hang_up = asyncio.Event()
    _install_signal_handlers(stop, hang_up)
    async with AsyncExitStack() as stack:
        starting = asyncio.create_task(application.start(stack))
        if not await _unless_stopped(starting, stop):
            return 0
        running = starting.result()
        if source is not None:
            reloads = partial(_reload_on, hang_up, source, running, application.name, log)
            running = replace(running, tasks={**running.tasks, "reload": reloads})
        failure = await _serve_until_stopped(
            running, application, stop=stop, log=log, ready_file=ready_file
        )
    log.info("stopped", exit_code=failure)
    return failure


async def _serve_until_stopped(
    running: Running,
    application: Application,
    *,
    stop: asyncio.Event,
    log: Logger,
    ready_file: Path | None,
) -> int:
    settings = application.server_settings
    failure = 0
    if not running.listens_when_ready:
        await running.server.start()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(running.supervisor.keep(name, task), name=name)
                for name, task in running.tasks.items()
            ]
            getting_ready = running.supervisor.keep("ready", running.ready)
            if await _unless_stopped(asyncio.ensure_future(getting_ready), stop):
                await running.server.set_serving(not running.supervisor.broken)
                if running.listens_when_ready:
                    await running.server.start()
                tasks.append(group.create_task(_follow_health(running)))
                addresses = _addresses(running)
                if ready_file is not None:
                    telling = tell_ready(ready_file, application.name, addresses, log)
                    tasks.append(group.create_task(telling))
                log.info("serving", **addresses)
                running.on_serving()
                await stop.wait()
            await _drain(running, settings, log=log, ready_file=ready_file)
            await end(tasks, log)
    except* asyncio.CancelledError:
        raise
    except* Exception as group_error:
        # It could not say that it is ready, or not stop: a bug. Callers still get an orderly end.
        for error in group_error.exceptions:
            log.exception("failed", error)
        failure = FAILURE_EXIT_CODE
        await running.server.enter_drain()
        remove_ready_file(ready_file)
        try:
            await _end_calls(running, settings, log)
        except Exception as error:
            log.exception("flush_failed", error)
    return failure


async def _follow_health(running: Running) -> None:
    """Takes readiness away while a long task is broken."""
    while True:
        await running.supervisor.changed()
        await running.server.set_serving(not running.supervisor.broken)


async def _reload_on(
    hang_up: asyncio.Event, source: SettingsSource, running: Running, service: str, log: Logger
) -> None:
    """Reads the settings again at each hang-up, for ever."""

    async def take(settings: SettingsModel, changed: frozenset[str]) -> set[str]:
        taken = set(await running.take_settings(settings, changed))
        _log_as_set(service, settings)
        return taken | {key for key in changed if key.startswith("log.")}

    while True:
        await hang_up.wait()
        hang_up.clear()
        await source.reload(take, log)


async def _drain(
    running: Running, settings: ServiceSettings, *, log: Logger, ready_file: Path | None
) -> None:
    remove_ready_file(ready_file)
    log.info("draining", lame_duck_s=settings.lame_duck_s, grace_s=settings.grace_s)
    if settings.lame_duck_s > 0.0:
        # Balancers need time to see NOT_SERVING; until then calls are still taken. Without that
        # time nobody is meant to see it: other processes serve on behind the same address.
        await running.server.enter_drain()
        await asyncio.sleep(settings.lame_duck_s)
    await _end_calls(running, settings, log)


async def _end_calls(running: Running, settings: ServiceSettings, log: Logger) -> None:
    """Ends the calls, and writes what is left of them."""
    running.server.end_watches()
    limit_s = settings.grace_s + _SERVER_S
    await within(running.server.stop(settings.grace_s), limit_s, "server", log)
    await within(running.flush(), _FLUSH_S, "flush", log)


async def _unless_stopped(task: asyncio.Future[Any], stop: asyncio.Event) -> bool:
    """Awaits `task` and returns True, or cancels it and returns False if a stop comes first."""
    waiter = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        waiter.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _install_signal_handlers(stop: asyncio.Event, hang_up: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    received: list[signal.Signals] = []

    def handle(number: signal.Signals) -> None:
        if received:
            os._exit(SIGNAL_EXIT_BASE + number)
        received.append(number)
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, handle, number)
    loop.add_signal_handler(signal.SIGHUP, hang_up.set)


def _addresses(running: Running) -> dict[str, str]:
    addresses = {place: str(address) for place, address in running.server.addresses.items()}
    if running.metrics_address:
        addresses["metrics"] = running.metrics_address
    return addresses


async def tell_ready(path: Path, service: str, addresses: Mapping[str, str], log: Logger) -> None:
    """Writes the ready file; a disk without room is waited for while the service serves."""
    told = False
    while True:
        try:
            write_ready_file(path, service, addresses)
        except OSError as error:
            if not told:
                reason = error.strerror or str(error)
                log.error("ready_file_not_written", path=str(path), reason=reason)
                told = True
            await asyncio.sleep(_READY_FILE_RETRY_S)
        else:
            return


def write_ready_file(path: Path, service: str, addresses: Mapping[str, str]) -> None:
    """Writes service name, process id and addresses as JSON; readers never see half of it."""
    text = json.dumps({"service": service, "pid": os.getpid(), "addresses": dict(addresses)})
    write_whole(path, f"{text}\n".encode())


def remove_ready_file(path: Path | None) -> None:
    """Removes the file if it is there and can be removed: no end of a service fails for it.

    A pipe or a device stays, and so does a link, which may be `/dev/stdout`.
    """
    with suppress(OSError):
        if path is not None and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)
