"""Health of one endpoint: hysteresis against flapping, and a ramp after a recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from router.fleet import EndpointSpec
from services.common.checks import is_name
from services.common.clock import Clock
from services.common.errors import cut
from services.load_monitor.model import MAX_REASON_BYTES, EndpointView, Health, TierGauge


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When health changes.

    Args:
        down_after_failures: Failed checks in a row until a thing counts as gone.
        up_after_successes: Good checks in a row until it counts as back.
        ramp_s: Time over which the weight grows to 1 after a recovery, seconds.
        ramp_start_weight: Weight at the recovery.
    """

    down_after_failures: int
    up_after_successes: int
    ramp_s: float
    ramp_start_weight: float


class Hysteresis:
    """A yes or no that needs several equal observations to change; the first counts at once."""

    def __init__(self, *, down_after: int, up_after: int) -> None:
        self._needed = {True: up_after, False: down_after}
        self._streak = 0
        self.value: bool | None = None

    def observe(self, good: bool) -> bool:
        """Takes an observation and returns True if the value changed."""
        if self.value is None or good == self.value:
            changed = self.value is None
            self.value = good
            self._streak = 0
            return changed
        self._streak += 1
        if self._streak < self._needed[good]:
            return False
        self.value = good
        self._streak = 0
        return True


@dataclass(frozen=True, slots=True)
class Counters:
    """What Triton counted for one model since it started.

    Args:
        success_count: Requests finished.
        failure_count: Requests failed.
        queue_s: Time all of them spent in the queue, seconds.
        compute_s: Time all of them spent in the model, seconds.
    """

    success_count: int
    failure_count: int
    queue_s: float
    compute_s: float


class EndpointTracker:
    """What is known about one endpoint; told what probes saw, tells its view.

    Args:
        spec: The endpoint.
        rules: When its health changes.
        clock: For the ramp and the stamps.
    """

    def __init__(self, spec: EndpointSpec, *, rules: HealthRules, clock: Clock) -> None:
        self.spec = spec
        self._rules = rules
        self._clock = clock
        self._live = self._new_hysteresis()
        self._ready = {tier: self._new_hysteresis() for tier in spec.models}
        self._gauges = {tier: TierGauge(tier=tier, ready=False) for tier in spec.models}
        self._counters: dict[str, Counters] = {}
        self._problem = "not probed yet"
        self._recovered_s: float | None = None
        self._probe_wall_ns = 0
        self._page_is_good = True
        self._view: tuple[bool, EndpointView] | None = None
        self.failed_probe_count = 0

    def _new_hysteresis(self) -> Hysteresis:
        return Hysteresis(
            down_after=self._rules.down_after_failures, up_after=self._rules.up_after_successes
        )

    @property
    def is_live(self) -> bool | None:
        """Whether it answers; None before the first probe."""
        return self._live.value

    def saw_answer(self) -> None:
        """Takes in that the endpoint answered a call."""
        self._view = None
        was = self._live.value
        self._probe_wall_ns = self._clock.wall_ns()
        if self._live.observe(True) and was is False:
            self._recovered_s = self._clock.monotonic_s()
            # What the process before the crash counted and served says nothing about the new one.
            self._counters.clear()
            self._gauges = {
                tier: replace(gauge, kind="", mean_queue_s=None, mean_compute_s=None)
                for tier, gauge in self._gauges.items()
            }

    def saw_failure(self, problem: str) -> None:
        """Takes in that a call failed, and why."""
        self._view = None
        self._probe_wall_ns = self._clock.wall_ns()
        self._problem = cut(problem, MAX_REASON_BYTES)
        self.failed_probe_count += 1
        self._live.observe(False)

    def saw_ready(self, tier: str, ready: bool) -> None:
        """Takes in whether the model of a tier is ready."""
        self._view = None
        hysteresis = self._ready[tier]
        was = hysteresis.value
        if hysteresis.observe(ready) and was is False and self._recovered_s is None:
            self._recovered_s = self._clock.monotonic_s()
        self._gauges[tier] = replace(self._gauges[tier], ready=bool(hysteresis.value))

    def saw_kind(self, tier: str, kind: str) -> None:
        """Takes in the kind of a tier; one that is no name counts as unknown."""
        self._view = None
        known = kind if is_name(kind) else ""
        self._gauges[tier] = replace(self._gauges[tier], kind=known)

    def saw_counters(self, by_model: Mapping[str, Counters]) -> None:
        """Takes in Triton's counters; means are over the time since the last call."""
        self._view = None
        for tier, model in self.spec.models.items():
            now = by_model.get(model)
            if now is None:
                continue
            before = self._counters.get(tier)
            self._counters[tier] = now
            mean_queue_s, mean_compute_s = _means(before, now)
            self._gauges[tier] = replace(
                self._gauges[tier],
                success_count=now.success_count,
                failure_count=now.failure_count,
                mean_queue_s=mean_queue_s,
                mean_compute_s=mean_compute_s,
            )

    def saw_queues(self, by_model: Mapping[str, int] | None) -> bool:
        """Takes in the queue depths of the metrics page; None if it could not be read.

        Returns whether that is a change from readable to not, or the other way.
        """
        self._view = None
        changed = self._page_is_good is not (by_model is not None)
        self._page_is_good = by_model is not None
        for tier, model in self.spec.models.items():
            depth = None if by_model is None else by_model.get(model)
            self._gauges[tier] = replace(self._gauges[tier], queue_depth=depth)
        return changed

    def models_without_kind(self) -> dict[str, str]:
        """Returns the models, by tier, whose kind is not known yet."""
        return {t: model for t, model in self.spec.models.items() if not self._gauges[t].kind}

    def view(self, *, draining: bool) -> EndpointView:
        """Returns the endpoint as it stands now: the same view until something changes."""
        if self._view is not None and self._view[0] is draining and not self.is_ramping():
            return self._view[1]
        health, reason = self._health(draining)
        usable = health in (Health.READY, Health.PARTIAL)
        view = EndpointView(
            spec=self.spec,
            health=health,
            ramp_weight=self._ramp_weight() if usable else 0.0,
            probe_wall_ns=self._probe_wall_ns,
            gauges=tuple(self._gauge(tier) for tier in self.spec.models),
            reason=reason,
        )
        # One that was taken while it ramped is no view of the time after.
        self._view = None if self.is_ramping() else (draining, view)
        return view

    def is_ramping(self) -> bool:
        """Returns whether its weight changes by itself at present."""
        return bool(self._live.value) and self._ramp_weight() < 1.0

    def _gauge(self, tier: str) -> TierGauge:
        gauge = self._gauges[tier]
        return gauge if self._live.value else replace(gauge, ready=False)

    def _health(self, draining: bool) -> tuple[Health, str]:
        if draining:
            return Health.DRAINING, "is being removed"
        if self._live.value is None:
            return Health.UNKNOWN, self._problem
        if not self._live.value:
            return Health.DOWN, self._problem
        missing = [tier for tier, ready in self._ready.items() if not ready.value]
        if missing:
            return Health.PARTIAL, cut(f"not ready: {', '.join(missing)}", MAX_REASON_BYTES)
        return Health.READY, ""

    def _ramp_weight(self) -> float:
        if self._recovered_s is None:
            return 1.0
        elapsed_s = self._clock.monotonic_s() - self._recovered_s
        if elapsed_s >= self._rules.ramp_s:
            self._recovered_s = None
            return 1.0
        start = self._rules.ramp_start_weight
        return start + (1.0 - start) * elapsed_s / self._rules.ramp_s


def _means(before: Counters | None, now: Counters) -> tuple[float | None, float | None]:
    """Returns mean queue and compute time of the requests between two readings, seconds."""
    if before is None or now.success_count <= before.success_count:
        # Nothing was served, or Triton was restarted and counts from zero.
        return None, None
    count = now.success_count - before.success_count
    queue_s, compute_s = now.queue_s - before.queue_s, now.compute_s - before.compute_s
    return max(queue_s / count, 0.0), max(compute_s / count, 0.0)
