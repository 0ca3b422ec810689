"""The RPCs of the monitor: convert, call, convert."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from services.common.access.guard import caller_name
from services.common.access.plain_text import Refusal
from services.common.clock import Clock
from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.log import Logger
from services.common.mesh_settings import TaskSettings
from services.common.times import timestamp_of
from services.load_monitor import convert
from services.load_monitor.board import Board
from services.load_monitor.books import MinuteBooks
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.convert_state import state_of_picture
from services.load_monitor.convert_targets import message_of_target, target_from_message
from services.load_monitor.coordination import Coordinator
from services.load_monitor.loads import NO_ORDER
from services.load_monitor.metrics import MonitorCounters
from services.load_monitor.model import NOTHING_TOLD
from services.load_monitor.router_states import RouterStates, Watcher
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc

_GOOD_BYE_S = 0.05
"""How long after the end of its reports a router counts as gone."""
# A certificate that has such a name is one router's, that of the id before it.
_ROUTER_NAMES = b".router-inference"


class LoadMonitorServicer(pb_grpc.LoadMonitorServiceServicer):
    """Answers the LoadMonitorService.

    Args:
        board: Takes the reports.
        broadcast: Gives the states.
        coordinator: Changes the endpoint list and targets.
        books: Gives past minutes.
        counters: Counts reports and changes.
        tiers: The mesh's tiers.
        tasks: Returns the mesh's tasks.
        refusal: Tells by field and address why an endpoint may not have it.
        max_endpoints: Most endpoints.
        max_watchers: Most watches at a time.
        shared_certificate: Whether a certificate that names no router may be any router's.
        clock: For stamps.
        log: For changes of targets.
    """

    def __init__(
        self,
        *,
        board: Board,
        broadcast: Broadcast,
        coordinator: Coordinator,
        books: MinuteBooks,
        counters: MonitorCounters,
        tiers: tuple[str, ...],
        tasks: Callable[[], Sequence[TaskSettings]],
        refusal: Callable[[str, str], Refusal | None],
        max_endpoints: int,
        max_watchers: int,
        shared_certificate: bool,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._board = board
        self._broadcast = broadcast
        self._coordinator = coordinator
        self._books = books
        self._tiers = tiers
        self._tasks = tasks
        self._refusal = refusal
        self._max_endpoints = max_endpoints
        self._max_watchers = max_watchers
        self._shared_certificate = shared_certificate
        self._clock = clock
        self._log = log
        self._targets_set = counters.targets_set
        self._taken = counters.reports.labels(result="taken")
        self._stale = counters.reports.labels(result="stale")
        self._state_of = functools.lru_cache(maxsize=2)(state_of_picture)
        self._router_states = RouterStates()

    async def ReportTraffic(
        self, request_iterator: AsyncIterator[pb.ReportTrafficRequest], context: Any
    ) -> pb.ReportTrafficResponse:
        """Takes the reports of one router until it leaves."""
        router_id, epoch, last_sequence = "", 0, 0
        stream, order, tasks = object(), NO_ORDER, NOTHING_TOLD
        try:
            async for request in request_iterator:
                report = convert.report_from_message(request.load, order, self._board.order, tasks)
                tasks = report.tasks
                if report.loads.order is not NO_ORDER:
                    order = report.loads.order
                if not router_id:
                    self._check_identity(context, report.router_id)
                if router_id not in ("", report.router_id):
                    problem = f"changed from {router_id!r} to {report.router_id!r} within a stream"
                    raise InvalidArgumentError("load.router_id", problem)
                router_id, epoch = report.router_id, report.epoch
                if self._board.take_report(report, stream):
                    self._taken.inc()
                    last_sequence = report.sequence
                else:
                    self._stale.inc()
            if router_id:
                # A stream that was broken off ends as one that its router ended. That it was broken
                # off comes as a cancellation right behind it: the router may be there all the same.
                await self._clock.sleep(_GOOD_BYE_S)
                self._board.leave(router_id, epoch)
        finally:
            self._board.aggregator.stream_broke(router_id, stream)
        return pb.ReportTrafficResponse(last_sequence=last_sequence)

    async def GetSystemState(
        self, request: pb.GetSystemStateRequest, context: Any
    ) -> pb.GetSystemStateResponse:
        """Returns the newest state."""
        latest = self._broadcast.latest
        if latest is None:
            raise UnavailableError("NO_STATE_YET", "no state was published yet", retry_after_s=0.5)
        return pb.GetSystemStateResponse(state=self._state_of(latest))

    async def WatchSystemState(
        self, request: pb.WatchSystemStateRequest, context: Any
    ) -> AsyncIterator[pb.WatchSystemStateResponse]:
        """Sends states newer than the caller's as they come."""
        version, router_id, epoch = convert.watcher_of(request)
        if router_id:
            self._check_identity(context, router_id)
        latest = self._broadcast.latest
        if latest is None or version > latest.version:
            # It counts another monitor's states, whose clock and numbers are none of ours.
            version = 0
        if self._broadcast.watcher_count >= self._max_watchers:
            raise ResourceExhaustedError(
                "TOO_MANY_WATCHERS",
                f"{self._max_watchers} watches",
                f"{self._broadcast.watcher_count} watches",
                retry_after_s=1.0,
            )
        self._broadcast.watcher_count += 1
        watcher = Watcher(router_id, epoch) if router_id else None
        try:
            while True:
                picture = await self._broadcast.after(version)
                version = picture.version
                if watcher is None:
                    yield pb.WatchSystemStateResponse(state=self._state_of(picture))
                else:
                    age_s = self._broadcast.age_s
                    others = self._router_states.state_for(watcher, picture, age_s)
                    yield pb.WatchSystemStateResponse(others=others)
        finally:
            self._broadcast.watcher_count -= 1

    async def AddEndpoint(
        self, request: pb.AddEndpointRequest, context: Any
    ) -> pb.AddEndpointResponse:
        """Adds an endpoint to the list."""
        endpoint = convert.endpoint_from_message(request.endpoint, self._tiers, self._refusal)
        version = await self._coordinator.change(
            lambda topology: topology.add(endpoint, max_endpoints=self._max_endpoints)
        )
        return pb.AddEndpointResponse(topology_version=version)

    async def RemoveEndpoint(
        self, request: pb.RemoveEndpointRequest, context: Any
    ) -> pb.RemoveEndpointResponse:
        """Lets an endpoint drain; it leaves when it is empty or its time is over."""
        name = convert.endpoint_name_of(request)
        drain_s = convert.drain_from_message(request)
        version = await self._coordinator.change(lambda topology: topology.drain(name, drain_s))
        return pb.RemoveEndpointResponse(topology_version=version)

    async def SetTarget(self, request: pb.SetTargetRequest, context: Any) -> pb.SetTargetResponse:
        """Sets a task's target, or gives it back to the settings."""
        override = target_from_message(request, caller_name(context), self._clock.wall_ns())
        self._check_task(override.task, is_set=override.target is not None)
        override = await self._coordinator.set_target(override)
        self._targets_set.labels(task=override.task).inc()
        self._log.info(
            "target_set",
            task=override.task,
            target="settings" if override.target is None else override.target,
            set_by=override.set_by,
            reason=override.reason,
            duration_s=round(max(0, override.expire_wall_ns - override.set_wall_ns) / 1e9),
        )
        return pb.SetTargetResponse(override=message_of_target(override))

    async def ListMinutes(
        self, request: pb.ListMinutesRequest, context: Any
    ) -> pb.ListMinutesResponse:
        """Returns past minutes."""
        span = convert.span_from_message(request, self._clock.wall_ns() / 1e9)
        minutes, next_s = await self._books.minutes(*span)
        response = pb.ListMinutesResponse(minutes=minutes)
        if next_s is not None:
            response.next_start_time.CopyFrom(timestamp_of(next_s * 10**9))
        return response

    def _check_task(self, name: str, *, is_set: bool) -> None:
        """Raises NotFoundError for no task of the mesh, InvalidArgumentError for a soft one."""
        tasks = {task.name: task for task in self._tasks()}
        if name not in tasks:
            # One that has left the settings can still be given back.
            if not is_set and name in self._board.targets:
                return
            raise NotFoundError("task", name, tasks)
        if is_set and tasks[name].reward == "soft":
            limit = 'tasks with reward = "hard"'
            raise InvalidArgumentError("task", f"{name} has soft deadlines", limit)

    def _check_identity(self, context: Any, router_id: str) -> None:
        """Raises PermissionDeniedError if the caller's certificate is not that of a router."""
        shown = context.peer_identities()
        names = [name for name in shown or () if name.endswith(_ROUTER_NAMES)]
        if not shown or router_id.encode() + _ROUTER_NAMES in names:
            return
        if names:
            raise PermissionDeniedError(
                f"the certificate is not that of router {router_id!r}", reason="ROUTER_ID_NOT_OWN"
            )
        if not self._shared_certificate:
            raise PermissionDeniedError(
                f"the certificate names no router; it needs {router_id}{_ROUTER_NAMES.decode()!s},"
                " or the monitor load_monitor.shared_router_certificate = true",
                reason="ROUTER_ID_MISSING",
            )
