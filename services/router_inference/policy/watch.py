"""Watches the policy that has become active, and goes back by itself where it breaks a limit.

Every policy's requests are counted by the load that was offered when they were decided for
(`router.watch`). When the trainer activates another one, the last figures of the old one are what
the new one is compared with, as long as the trainer wants it watched. Workers of a router see the
sum of what all of them counted; where one goes back, so do the others. A policy that somebody
pinned is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router import watch
from router.fleet import Fleet
from router.guard import FAULTS, Guard
from router.watch import REASONS, WIDTH, Figures, Watcher, WatchLimits, WatchReport
from services.common.clock import Clock
from services.common.log import Logger
from services.router_inference.job import Arm, Job, Outcome
from services.router_inference.policy.slot import PolicySlot
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.view.fleet import FleetView
from services.router_inference.workers.memory import WATCH_WIDTH
from services.router_inference.workers.siblings import NoSiblings

TICK_S = 0.1
"""Time between two looks, seconds."""
HALF_KEPT_S = 1_800.0
"""Figures of a policy in force are of the last half hour to hour."""
_HEAD = 2
_COUNTED = (Outcome.ON_TIME, Outcome.LATE, Outcome.FAILED)


class Watched(NamedTuple):
    """What the trainer wants watched.

    Attributes:
        activation: number of the activation; 0 = nothing.
        limits: what its policy must keep to.
        left_s: for how long yet, seconds.
    """

    activation: int
    limits: WatchLimits
    left_s: float


NOT_WATCHED = Watched(0, WatchLimits(1.0, 1.0), 0.0)


class PolicyWatch:
    """The figures of one process, and its watch.

    Attributes:
        slow_s: a decision that takes longer is slow, seconds.
    """

    def __init__(
        self,
        *,
        slot: PolicySlot,
        fleet: FleetView,
        siblings: NoSiblings,
        slow_s: float,
        metrics: RouterMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes its parts, and follows the slot from now on.

        A decision that takes longer than `slow_s` seconds is slow.
        """
        self._slot = slot
        self._fleet = fleet
        self._siblings = siblings
        self.slow_s = slow_s
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._devices = 1.0
        self._key = self._present()
        self._began_s = self._half_s = clock.monotonic_s()
        self._faults = _faults_of(slot.guard)
        self._after = Figures()
        self._older, self._newer = Figures(), Figures()
        self._before, self._before_of = Figures(), ("", "")
        self._problem = self._detail = ""
        self._told, self._until_s = NOT_WATCHED, 0.0
        self._watcher = Watcher(NOT_WATCHED.limits)
        slot.on_swap = self._on_swap

    # -- on the path

    def load_class(self, rate_rps: float) -> int:
        """Returns the class of load of a request.

        Args:
            rate_rps: arrivals in the mesh as its decision sees them, requests per second.
        """
        return watch.load_class(rate_rps, self._devices)

    def on_end(self, job: Job, *, is_hopeless: bool) -> None:
        """Counts an end; what was cancelled, claimed, or decided by a canary says nothing here.

        Args:
            job: the request.
            is_hopeless: it was refused, since it would have been late everywhere.
        """
        if job.is_routed or job.arm is Arm.CANARY:
            return
        choice = job.choice
        if is_hopeless:
            self._count(job, is_missed=True)
            return
        if choice is None or job.outcome not in _COUNTED or choice.start_s < self._began_s:
            return
        is_given_up = job.is_rescued or job.retry_count > 0
        is_missed = is_given_up or job.outcome is not Outcome.ON_TIME
        taken_s = choice.end_s - choice.start_s
        for figures in (self._after, self._newer):
            figures.decisions += 1.0
            figures.decision_s += taken_s
        self._count(job, is_missed=is_missed, is_slow=taken_s > self.slow_s)

    def _count(self, job: Job, *, is_missed: bool, is_slow: bool = False) -> None:
        at, is_failed = job.load_class, job.outcome is Outcome.FAILED
        if not self._problem:  # else the policy decides no more
            self._after.add(at, is_missed=is_missed, is_failed=is_failed, is_slow=is_slow)
        self._newer.add(at, is_missed=is_missed, is_failed=is_failed, is_slow=is_slow)

    # -- what the trainer wants

    def take(self, watched: Watched) -> None:
        """Begins, goes on with, or ends a watch."""
        if watched.activation != self._told.activation or watched.limits != self._told.limits:
            self._watcher = Watcher(watched.limits)
            self._metrics.watch_info.clear()
            if watched.activation:
                self._log.info("policy_watched", activation=watched.activation)
        self._told = watched
        self._until_s = self._clock.monotonic_s() + watched.left_s

    def in_force(self) -> Figures:
        """Returns the last figures of the policy in use, of this process."""
        return self._older.plus(self._newer)

    @property
    def is_under_way(self) -> bool:
        """True while the policy in use is watched."""
        return (
            self._told.activation == self._slot.activation != 0
            and not self._slot.is_pinned
            and not self._problem
            and self._clock.monotonic_s() < self._until_s
        )

    @property
    def watched_activation(self) -> int:
        """The activation that is watched at present; 0 for none."""
        return self._slot.activation if self.is_under_way else 0

    @property
    def problem(self) -> str:
        """Why this process went back from the present activation, for people; empty if not."""
        return f"{self._problem}: {self._detail}" if self._problem else ""

    def told(self) -> WatchReport | None:
        """Returns what the router reports: what all its workers counted; None for nothing."""
        if not (self._problem or self.is_under_way):
            return None
        before, after = self._of_all()
        activation = self._slot.activation
        return WatchReport(activation, self._problem, self._detail, before, after)

    # -- in the background

    async def run(self) -> None:
        """Looks for ever."""
        while True:
            self.look()
            await self._clock.sleep(TICK_S)

    def look(self) -> None:
        """Shows the siblings what was counted, and goes back if a limit is broken."""
        now_s = self._clock.monotonic_s()
        # As of now: the last request may have been kept to some endpoints.
        self._devices = _usable_devices(self._fleet.current(now_s))
        if now_s - self._half_s >= HALF_KEPT_S:
            self._older, self._newer, self._half_s = self._newer, Figures(), now_s
        if not self._problem:
            faults = _faults_of(self._slot.guard)
            self._after.faults += faults - self._faults
            self._newer.faults += faults - self._faults
            self._faults = faults
        if not self._siblings.is_alone:
            self._siblings.show_watch(self._row())
        if not self.is_under_way:
            return
        self._metrics.watch_info.labels(self._slot.name, self._slot.version).set(1.0)
        for row in self._siblings.other_watches():
            if row[0] == self._slot.activation and row[1]:
                self._go_back(REASONS[int(row[1])], "another worker saw it")
                return
        broken = self._watcher.look(*self._of_all())
        if broken is not None:
            self._go_back(*broken)

    def _go_back(self, reason: str, detail: str) -> None:
        names = {"policy": self._slot.name, "policy_version": self._slot.version}
        self._problem, self._detail = reason, detail[:200]
        self._metrics.watch_returns.labels(reason=reason).inc()
        self._metrics.watch_info.clear()
        self._log.warning(
            "policy_went_back",
            reason=reason,
            detail=detail,
            activation=self._slot.activation,
            **names,
        )
        self._slot.go_back(reason)
        if not self._siblings.is_alone:
            self._siblings.show_watch(self._row())

    def _of_all(self) -> tuple[Figures, Figures]:
        """Returns the figures of the replaced policy and of the watched one, of all workers."""
        before, after = self._before, self._after
        for row in self._siblings.other_watches():
            if row[0] == self._slot.activation:
                before = before.plus(Figures.of_row(row[_HEAD : _HEAD + WIDTH]))
                after = after.plus(Figures.of_row(row[_HEAD + WIDTH :]))
        return before, after

    def _row(self) -> NDArray[np.float64]:
        row = np.zeros(WATCH_WIDTH)
        row[0] = self._slot.activation
        row[1] = REASONS.index(self._problem)
        row[_HEAD : _HEAD + WIDTH] = self._before.row()
        row[_HEAD + WIDTH :] = self._after.row()
        return row

    def _present(self) -> tuple[int, str, str]:
        return self._slot.activation, self._slot.name, self._slot.version

    def _on_swap(self) -> None:
        """Begins to count anew for another policy; the last figures of the old one are kept."""
        key, old = self._present(), self._key
        if key == old:
            return
        self._key = key
        if self._problem and key[0] == old[0]:
            return  # it went back: what is reported of this activation stays as it was
        is_known = key[1:] == self._before_of
        kept = self._before if is_known else Figures()
        self._before, self._before_of = self._older.plus(self._newer), old[1:]
        self._older, self._newer, self._after = kept, Figures(), Figures()
        self._faults = _faults_of(self._slot.guard)
        self._began_s = self._half_s = self._clock.monotonic_s()
        self._problem = self._detail = ""
        self._watcher = Watcher(self._told.limits)
        self._metrics.watch_info.clear()


def _faults_of(guard: Guard) -> float:
    counts: Mapping[str, int] = guard.counts
    return float(sum(counts[reason] for reason in FAULTS))


def _usable_devices(fleet: Fleet) -> float:
    usable_C = fleet.arrays.availability_C > 0.0
    return float(len(np.unique(fleet.arrays.device_C[usable_C])))
