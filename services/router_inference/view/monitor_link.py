"""The link to the load monitor: system states in, traffic reports out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.health_notes import (
    MONITOR_UNREACHABLE,
    REPORTS_REFUSED,
    HealthNotes,
)
from services.router_inference.path.hold import TargetHold
from services.router_inference.path.targets import Targets
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.policy.trial import Trial
from services.router_inference.policy.watch import PolicyWatch
from services.router_inference.reconnect import END_OF_STREAM, reconnecting
from services.router_inference.records.attainment import Attainments
from services.router_inference.records.router_counts import RouterCounts
from services.router_inference.view.convert import LoadWriter, StateReader, router_load
from services.router_inference.view.quality import LearnedQuality
from services.router_inference.view.view import View
from services.router_inference.workers.siblings import NoSiblings
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc

_TASKS_INTERVAL_S = 1.0
_REFUSALS = (
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INVALID_ARGUMENT,
)


class _TurnOverError(Exception):
    """Another worker of this router reports."""


class MonitorLink:
    """Watches the system state and reports traffic, over one channel."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        router_id: str,
        epoch: int,
        view: View,
        counts: RouterCounts,
        targets: Targets,
        attainments: Attainments,
        hold: TargetHold,
        siblings: NoSiblings,
        slot: PolicySlot,
        trial: Trial,
        watch: PolicyWatch,
        quality: LearnedQuality,
        notes: HealthNotes,
        clock: Clock,
        log: Logger,
        report_interval_s: float,
        silence_s: float,
        longest_wait_s: float,
    ) -> None:
        """Takes its parts; a stream silent for `silence_s` seconds is given up."""
        self._stub = monitor_grpc.LoadMonitorServiceStub(channel)
        self._router_id = router_id
        self._epoch = epoch
        self._view = view
        self._counts = counts
        self._targets = targets
        self._attainments = attainments
        self._hold = hold
        self._siblings = siblings
        self._slot = slot
        self._trial = trial
        self._watch = watch
        self._quality = quality
        self._notes = notes
        self._clock = clock
        self._log = log
        self._report_interval_s = report_interval_s
        self._silence_s = silence_s
        self._longest_wait_s = longest_wait_s
        self._version = 0
        self._packs = False

    async def watch(self) -> None:
        """Takes in system states for ever."""
        await reconnecting(
            session=self._watch_once,
            on_down=lambda reason: self._notes.set(MONITOR_UNREACHABLE, True, reason),
            clock=self._clock,
            longest_wait_s=self._longest_wait_s,
            log=self._log,
            peer="load-monitor",
        )

    async def report(self) -> None:
        """Reports traffic for ever."""
        await reconnecting(
            session=self._report_once,
            on_down=lambda _: None,
            clock=self._clock,
            longest_wait_s=self._longest_wait_s,
            log=self._log,
            peer="load-monitor",
        )

    async def _watch_once(self, works: Callable[[], None]) -> None:
        request = monitor_pb2.WatchSystemStateRequest(
            after_version=self._version, router_id=self._router_id, epoch=self._epoch
        )
        reader = StateReader(self._router_id, self._epoch)
        call = self._stub.WatchSystemState(request)
        try:
            async for response in with_silence_limit(call, self._silence_s):
                works()
                state = reader.read(response)
                self._packs = response.HasField("others")
                # A monitor that lost its store may count from 1 again; its states are newer all
                # the same.
                self._version = response.others.version or response.state.version
                self._view.apply(state, self._clock.monotonic_s())
                if state.targets is not None:
                    self._targets.apply(state.targets)
                if state.ratings is not None:
                    self._quality.take_in(state.ratings)
                self._notes.set(MONITOR_UNREACHABLE, False)
        finally:
            # The next monitor may be of the last release, and would drop packed loads.
            self._packs = False
        self._version = 0

    async def _report_once(self, works: Callable[[], None]) -> None:
        def accepted() -> None:
            works()
            self._notes.set(REPORTS_REFUSED, False)

        while not self._siblings.is_reporter():
            await self._clock.sleep(self._report_interval_s)
        try:
            await self._stub.ReportTraffic(self._reports(accepted))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._siblings.is_reporter() or (task is not None and task.cancelling()):
                raise
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                # The others do not see this router's load: its name is taken, or there is no room.
                self._notes.set(REPORTS_REFUSED, True, error.details() or "")
            raise

    async def _reports(
        self, works: Callable[[], None]
    ) -> AsyncIterator[monitor_pb2.ReportTrafficRequest]:
        sent_count, loads, told_s = 0, LoadWriter(), -math.inf
        while True:
            if not self._siblings.is_reporter():
                # gRPC breaks the stream off. An orderly end would say that the router leaves, and
                # another worker reports from now on.
                raise _TurnOverError
            now_s = self._clock.monotonic_s()
            if tells_tasks := now_s - told_s >= _TASKS_INTERVAL_S:
                told_s = now_s
            load = router_load(
                router_id=self._router_id,
                epoch=self._epoch,
                sequence=self._siblings.next_report(),
                view=self._view,
                counts=self._counts,
                policy=self._slot.name,
                policy_version=self._slot.version,
                activation=self._slot.activation,
                policy_refusal=self._slot.refusal,
                attainments=self._attainments.read(),
                latencies=self._attainments.latencies() if tells_tasks else {},
                tells_tasks=tells_tasks,
                target_pressure=self._hold.pressure(),
                trial=self._trial.told(),
                watch=self._watch.told(),
                learns_quality=self._quality.is_on,
                ratings=self._quality.told() if tells_tasks else {},
                loads=loads,
                packs=self._packs,
                now_s=now_s,
                now_ns=self._clock.wall_ns(),
            )
            yield monitor_pb2.ReportTrafficRequest(load=load)
            sent_count += 1
            if sent_count > 1:
                works()
            await self._clock.sleep(self._report_interval_s)


async def with_silence_limit(call: Any, silence_s: float) -> AsyncIterator[Any]:
    """Yields a stream's messages; ends it after `silence_s` seconds without one.

    A message that gRPC cannot read, which it hands over as None, ends it too.
    """
    try:
        while True:
            async with asyncio.timeout(silence_s):
                message = await call.read()
            if message is END_OF_STREAM or message is None:
                return
            yield message
    except TimeoutError:
        return
    finally:
        call.cancel()
