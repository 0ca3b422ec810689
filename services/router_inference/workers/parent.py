"""The parent of a router's workers: starts them, watches them, starts successors, ends them.

It forks itself after everything was read, imported and compiled, so that a worker starts in a
fraction of a second and shares that memory with the others. Until then and ever after, the parent
makes no channel, no server and no thread that a fork could not survive.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from services.common.addresses import HostPort, parse_address
from services.common.lifecycle import (
    FAILURE_EXIT_CODE,
    SIGNAL_EXIT_BASE,
    SIGNALS,
    remove_ready_file,
    run,
    tell_ready,
)
from services.common.log import Logger, configure_logging
from services.common.metrics import MetricsServer, start_metrics_server
from services.common.process_id import new_process_id
from services.common.reload import SettingsSource
from services.common.server import OPERATE, check_port_is_free
from services.common.start_error import StartError
from services.common.stopping import end
from services.router_inference.app import ENVOY, RouterInference
from services.router_inference.path.conversations import table_words
from services.router_inference.records.router_counts import as_ended, counts_width
from services.router_inference.settings import Settings
from services.router_inference.workers import exchange, frames, merge
from services.router_inference.workers.memory import REPORTER, Memory
from services.router_inference.workers.pages import MergedPages, ParentMetrics
from services.router_inference.workers.place import Place
from services.router_inference.workers.process import WorkerProcess
from services.router_inference.workers.servicer import USE_POLICY
from services.router_inference.workers.siblings import SharedSiblings
from services.router_inference.workers.worker import WorkerApplication

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 5.0
"""Wait before a successor is started: the first, and what it grows to while none comes to serve."""
_EXTRA_STOP_S = 5.0
_READY_S = 60.0


_FIXED = (
    *(
        "workers",
        "listen",
        "operate_listen",
        "envoy_listen",
        "metrics_listen",
        "router_id",
        "compiled",
        "conversation_count",
    ),
    *("client_certificates", "insecure_open_to_network"),
)
_FIXED_OF_MESH = ("tiers", "tls", "access")
"""Keys of its section, and of the mesh's, that the parent's own memory, ports and code rest on."""


def run_router(
    app: RouterInference, log: Logger, ready_file: Path | None, source: SettingsSource
) -> int:
    """Runs a router, as one process or as several; returns the exit code."""
    if app.settings.router_inference.workers == 1:
        return run(app, log=log, ready_file=ready_file, source=source)
    try:
        return asyncio.run(Parent(app, log=log, ready_file=ready_file, source=source).run())
    except StartError as error:
        sys.stderr.write(f"{app.name}: {error}\n")
        return FAILURE_EXIT_CODE


class Parent:
    """Keeps the workers of one router running."""

    def __init__(
        self,
        app: RouterInference,
        *,
        log: Logger,
        ready_file: Path | None,
        source: SettingsSource,
    ) -> None:
        """Starts nothing; `app` is what every worker becomes a copy of."""
        self._app = app
        self._source = source
        self._own = app.settings.router_inference
        self._log = log
        self._ready_file = ready_file
        self._router_id = self._own.router_id or new_process_id()
        self._epoch = app.clock.wall_ns()
        tiers = app.settings.mesh.tiers
        self._memory = Memory(
            worker_count=self._own.workers,
            counts_width=counts_width(tiers),
            conversation_words=table_words(self._own.conversation_count),
        )
        self._name_tasks()
        self._workers: dict[int, WorkerProcess] = {}
        self._signals: list[int] = []
        self._stop = asyncio.Event()
        self._changed = asyncio.Condition()
        self._exit_code = 0
        self._has_served = False
        self._hang_up = asyncio.Event()
        self._own_descriptors: list[int] = []
        self._addresses: dict[str, str] = {}
        self._ended: merge.Families = {}
        self._passing: set[asyncio.Future[None]] = set()
        self._told_all = b""
        self._registry = CollectorRegistry(auto_describe=False)
        self._metrics = ParentMetrics(self._registry)
        self._metrics.workers.set_function(lambda: float(len(self._serving())))

    async def run(self) -> int:
        """Runs until a signal or until no worker can start; returns the exit code."""
        self._handle_signals()
        with contextlib.ExitStack() as stack:
            for name, listen in self._app.listens.items():
                holder = stack.enter_context(_reserved(listen))
                self._own_descriptors.append(holder.fileno())
                host = parse_address(listen, allow_port_zero=True).host
                self._addresses[name] = str(HostPort(host, holder.getsockname()[1]))
            metrics = self._serve_metrics()
            if metrics is not None:
                self._own_descriptors.append(metrics.descriptor)
            try:
                async with asyncio.TaskGroup() as group:
                    numbers = range(1, self._own.workers + 1)
                    keepers = [group.create_task(self._keep(number)) for number in numbers]
                    until_stop = [
                        group.create_task(self._announce(metrics)),
                        group.create_task(self._renew()),
                    ]
                    await asyncio.wait([group.create_task(self._stop.wait())])
                    for task in until_stop:
                        task.cancel()
                    remove_ready_file(self._ready_file)
                    self._log.info("draining", workers=len(self._workers))
                    await asyncio.wait(keepers)
                    await end(until_stop, self._log)
            finally:
                if metrics is not None:
                    await metrics.close()
        self._log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up.set)

    def _on_signal(self, number: int) -> None:
        if self._signals:
            for worker in self._workers.values():
                worker.kill()
            os._exit(SIGNAL_EXIT_BASE + number)
        self._signals.append(number)
        self._end()

    async def _renew(self) -> None:
        """At each hang-up reads the settings again and replaces the workers, for ever."""
        while True:
            await self._hang_up.wait()
            self._hang_up.clear()
            try:
                if await self._source.reload(self._take, self._log):
                    await self._roll()
            except Exception as error:
                self._log.exception("rolling_restart_failed", error)

    async def _take(self, settings: Settings, changed: frozenset[str]) -> Collection[str]:
        """Has the workers to come run by other settings, but for what the parent rests on."""
        old = self._app.settings
        own, mesh = old.router_inference, old.mesh
        wanted = settings.model_copy(
            update={
                "router_inference": settings.router_inference.model_copy(
                    update={key: getattr(own, key) for key in _FIXED}
                ),
                "mesh": settings.mesh.model_copy(
                    update={key: getattr(mesh, key) for key in _FIXED_OF_MESH}
                ),
            }
        )
        self._app = await asyncio.to_thread(self._app.successor, wanted)
        self._own = wanted.router_inference
        self._name_tasks()
        if {"router_inference.policy", "router_inference.policy_snapshot"} & changed:
            self._told_all = b""  # a policy named by hand gives way to one that was edited
        fixed = {f"router_inference.{key}" for key in _FIXED}
        fixed |= {f"mesh.{key}" for key in _FIXED_OF_MESH}
        return {key for key in changed if not {key, ".".join(key.split(".")[:2])} & fixed}

    def _name_tasks(self) -> None:
        """Gives tasks places in the memory, for the workers to come."""
        self._memory.task_places([task.name for task in self._app.settings.mesh.tasks])

    async def _keep(self, number: int) -> None:
        """Runs one worker after the other in a place, until the stop."""
        wait_s = FIRST_WAIT_S
        while not self._stop.is_set():
            try:
                worker = self._workers[number] = self._fork(number)
            except OSError as error:
                # No memory, process or descriptor is left; the workers that serve go on meanwhile.
                what = error.strerror or str(error)
                self._log.error("worker_not_started", worker=number, by=what, next_in_s=wait_s)
                if not self._has_served:
                    self._fail(FAILURE_EXIT_CODE)
                    return
                wait_s = await self._pause(wait_s)
                continue
            reading = asyncio.create_task(self._read(worker))
            if self._told_all:
                worker.send(frames.frame(frames.ASK, exchange.ask_bytes(0, self._told_all)))
            code = await worker.ended
            self._memory.retire(number, as_ended)
            await reading
            await self._on_end(number, worker)
            if self._stop.is_set():
                return
            if not self._has_served:
                self._fail(code if code > 0 else FAILURE_EXIT_CODE)
                return
            reason = "rolling" if worker.is_asked_to_end else "ended"
            self._metrics.restarts.labels(reason=reason).inc()
            if worker.is_asked_to_end:
                continue
            if worker.has_served:
                wait_s = FIRST_WAIT_S
            ending = f"exit code {code}" if code >= 0 else f"signal {-code}"
            self._log.error("worker_ended", worker=number, by=ending, next_in_s=wait_s)
            wait_s = await self._pause(wait_s)

    def _fail(self, exit_code: int) -> None:
        """Gives up before any worker has served: what keeps one from starting keeps the others."""
        self._exit_code = exit_code
        self._end()

    async def _pause(self, wait_s: float) -> float:
        """Waits before the next start, or until the stop; returns how long to wait after that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._stop.wait()
        return min(LONGEST_WAIT_S, 2.0 * wait_s)

    async def _read(self, worker: WorkerProcess) -> None:
        """Takes in what a worker says, until it is gone."""
        async for kind, payload in worker.told():
            if kind == frames.SERVING:
                self._has_served = True
                self._elect()
                self._log.info("worker_serves", worker=worker.number, pid=worker.pid)
                await self._notify()
            elif kind == frames.METRICS:
                worker.on_metrics(payload.decode())
            elif kind == frames.ANSWER:
                worker.on_answer(payload)
            elif kind == frames.ASK:
                passing = asyncio.ensure_future(self._pass_on(worker, payload))
                self._passing.add(passing)
                passing.add_done_callback(self._passing.discard)

    async def _pass_on(self, asker: WorkerProcess, payload: bytes) -> None:
        """Has the others answer a worker's question; what all must do, successors do too."""
        number, to, body = exchange.read_ask(payload)
        if body.startswith(USE_POLICY.encode()):
            self._told_all = body
        others = [
            worker
            for worker in self._workers.values()
            if worker is not asker and to in (exchange.ALL, exchange.EACH, worker.number)
        ]
        found = await asyncio.gather(*(worker.ask(body) for worker in others))
        answers = [each for each in found if each is not None]
        # One after the other, messages of protobuf are one: their lists are joined.
        answer = b"".join(answers if to == exchange.EACH else answers[:1]) if answers else None
        asker.send(frames.frame(frames.ANSWER, exchange.answer_bytes(number, answer)))

    async def _on_end(self, number: int, worker: WorkerProcess) -> None:
        del self._workers[number]
        self._elect()
        self._ended = merge.lasting(merge.add_pages(self._ended, [worker.metrics_page]))
        await self._notify()

    def _elect(self) -> None:
        """Has the serving worker of the lowest number report for all."""
        numbers = sorted(worker.number for worker in self._serving())
        if numbers:
            self._memory.header[REPORTER] = numbers[0]

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    def _serving(self) -> list[WorkerProcess]:
        return [each for each in self._workers.values() if each.is_serving]

    async def _announce(self, metrics: MetricsServer | None) -> None:
        """Writes the ready file once every worker serves."""
        if self._ready_file is not None:
            remove_ready_file(self._ready_file)
        await self._until(lambda: len(self._serving()) == self._own.workers)
        addresses = dict(self._addresses)
        if metrics is not None:
            addresses["metrics"] = str(metrics.address)
        if self._ready_file is not None:
            await tell_ready(self._ready_file, self._app.name, addresses, self._log)
        self._log.info("serving", workers=self._own.workers, **addresses)

    async def _roll(self) -> None:
        """Ends the workers one by one, each once its predecessor's successor serves."""
        self._log.info("rolling_restart")
        for number in range(1, self._own.workers + 1):
            worker = self._workers.get(number)
            if worker is None or not worker.is_serving:
                continue
            self._ask_to_end(worker, frames.LEAVE)

            def is_followed(old: WorkerProcess = worker, number: int = number) -> bool:
                new = self._workers.get(number)
                return self._stop.is_set() or (
                    new is not None and new is not old and new.is_serving
                )

            try:
                limit_s = _READY_S + self._own.grace_s
                async with asyncio.timeout(limit_s):
                    await self._until(is_followed)
            except TimeoutError:
                self._log.error("rolling_restart_stopped", worker=number, waited_s=limit_s)
                return
            if self._stop.is_set():
                return
        self._log.info("rolling_restart_done")

    def _end(self) -> None:
        """Has every worker drain, as at a stop."""
        self._stop.set()
        for worker in self._workers.values():
            self._ask_to_end(worker, frames.DRAIN)

    def _ask_to_end(self, worker: WorkerProcess, how: bytes) -> None:
        worker.ask_to_end(how)
        self._elect()
        # Its own limits end it before; this is for one that hangs.
        limit_s = self._own.lame_duck_s + self._own.grace_s + _EXTRA_STOP_S
        asyncio.get_running_loop().call_later(limit_s, worker.kill)

    def _fork(self, number: int) -> WorkerProcess:
        place = Place(
            number=number,
            router_id=self._router_id,
            epoch=self._epoch,
            siblings=SharedSiblings(self._memory, number),
            listen=self._addresses["grpc"],
            operate_listen=self._addresses.get(OPERATE, ""),
            envoy_listen=self._addresses.get(ENVOY, ""),
        )
        # A copy kept would hide the parent's end from the others, and hold its ports.
        others = [worker.connection.fileno() for worker in self._workers.values()]
        others += self._own_descriptors

        def main(parent: socket.socket) -> int:
            for descriptor in others:
                os.close(descriptor)
            log = self._app.settings.log
            configure_logging(
                service=self._app.name, log_format=log.format, level=log.level, worker=number
            )
            self._app.take_place(place)
            worker = WorkerApplication(self._app, place.exchange, parent)
            return run(worker, log=self._log, stop=worker.stop)

        return WorkerProcess(number, main)

    def _serve_metrics(self) -> MetricsServer | None:
        if not self._own.metrics_listen:
            return None
        self._registry.register(MergedPages(self._pages, asyncio.get_running_loop()))
        hosts = self._app.settings.mesh.access.http_hosts
        return start_metrics_server(self._own.metrics_listen, self._registry, hosts=hosts)

    async def _pages(self) -> tuple[merge.Families, list[str]]:
        """Returns what ended workers left, and the pages of the living."""
        await asyncio.gather(*(worker.refresh_metrics() for worker in self._serving()))
        return self._ended, [worker.metrics_page for worker in self._workers.values()]


@contextlib.contextmanager
def _reserved(listen: str) -> Iterator[socket.socket]:
    """Yields what keeps an address for the workers; nothing listens by it.

    Raises:
        StartError: It is in use or not of this machine.
    """
    wanted = parse_address(listen, allow_port_zero=True)
    check_port_is_free(wanted)
    try:
        family = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)[0][0]
        holder = socket.socket(family, socket.SOCK_STREAM)
        with holder:
            # Else connections that a router before has closed would hold the port for a minute.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind((wanted.host, wanted.port))
            yield holder
    except OSError as error:
        raise StartError(f"cannot listen on {listen}: {error.strerror or error}") from None
