"""When a router explores: a small share of its decisions, and only where it can afford that."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING

from router.exploration import Exploration
from services.router_inference.health_notes import HealthNotes
from services.router_inference.job import Job
from services.router_inference.path.hold import TargetHold

if TYPE_CHECKING:
    from router.desk import Desk, Drawn
    from router.guard import Verdict


class Explored(enum.Enum):
    """What became of a decision while the router explores; the values are labels of telemetry."""

    EXPLORED = "explored"
    """It took another candidate than the policy's."""
    NOT_DRAWN = "not_drawn"
    """It was open to exploration, and the dice said no."""
    NO_CANDIDATE = "no_candidate"
    """No other candidate is expected in time, or it stays with its conversation."""
    FALLBACK = "fallback"
    """The fallback decided."""
    TRIAL = "trial"
    """It is one side of a trial's comparison."""
    PRESSURE = "pressure"
    """A target was being missed, or the router had just begun."""
    DEGRADED = "degraded"
    """The router is degraded."""


class Explorer:
    """Opens decisions to exploration, and counts what became of each."""

    def __init__(
        self,
        exploration: Exploration,
        *,
        hold: TargetHold,
        notes: HealthNotes,
        counts: Counter[str],
    ) -> None:
        """Takes its parts.

        Args:
            exploration: what the settings say.
            hold: how far targets press.
            notes: whether the router is degraded.
            counts: gets the decisions by what became of them; none while nothing is explored.
        """
        self.exploration = exploration
        self._hold = hold
        self._notes = notes
        self.counts = counts

    def draw(self, job: Job, desk: Desk, verdict: Verdict) -> Drawn:
        """Returns the policy's choice for a request, or another one that is explored."""
        if not self.exploration.share:
            return desk.draw(verdict.action)
        closed = self._closed(job, verdict)
        drawn = desk.draw(verdict.action, None if closed else self.exploration)
        if closed is None:
            closed = Explored.NOT_DRAWN if drawn.other_count else Explored.NO_CANDIDATE
        found = Explored.EXPLORED if drawn.explored else closed
        self.counts[found.value] += 1
        return drawn

    def _closed(self, job: Job, verdict: Verdict) -> Explored | None:
        """Returns why a decision may not explore; None if it may."""
        if verdict.fallback_reason:
            return Explored.FALLBACK
        if job.arm is not None:
            return Explored.TRIAL
        if job.held.is_small or job.held.pressure > 0.0 or self._hold.pressure() > 0.0:
            return Explored.PRESSURE
        return Explored.DEGRADED if self._notes.is_degraded else None
