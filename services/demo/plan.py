"""What the demo does: phases, rates, policies, and how they follow from what was measured."""

from __future__ import annotations

import dataclasses
import math

LEARNED_POLICY = "dqn"
POLICIES = ("static-large", "static-small", "greedy", "price", LEARNED_POLICY)
PHASES = ("calm", "burst", "recovery")
HELD = 0.99
"""Availability from which a load counts as held."""


@dataclasses.dataclass(frozen=True)
class DemoPlan:
    """Choices of the demo that no measurement makes.

    Attributes:
        seed: Seed of arrivals, prompts and training.
        policies: Policies to replay, in this order.
        calm_s: Length of the calm phase.
        burst_s: Length of the burst.
        recovery_s: Length of the recovery phase.
        calm_factor: Rate of calm and recovery over static-large's capacity.
        burst_factor: Rate of the burst over static-large's capacity, at least 3.
        deadline_factor: Deadline over the large tier's unloaded p95, at most 4.
        median_factor: Deadline over its unloaded median, if that is less: a few answers delayed by
            something else on the machine must not make the deadline easy.
        examples: Held-out examples per task and tier for the quality table.
        calibrate_run_s: Length of each closed-loop run of the calibration.
        probe_s: Length of one capacity probe.
        probe_count: Most capacity probes.
        train_s: Time the learned policy trains for.
        settle_s: Pause between runs, beside the wait for empty queues.
    """

    seed: int = 1
    policies: tuple[str, ...] = POLICIES
    calm_s: float = 3.0
    burst_s: float = 8.0
    recovery_s: float = 4.0
    calm_factor: float = 0.5
    burst_factor: float = 3.1
    deadline_factor: float = 4.0
    median_factor: float = 6.0
    examples: int = 100
    calibrate_run_s: float = 1.0
    probe_s: float = 4.0
    probe_count: int = 7
    train_s: float = 45.0
    settle_s: float = 1.5

    @property
    def run_s(self) -> float:
        """Length of one replay."""
        return self.calm_s + self.burst_s + self.recovery_s

    def deadline_s(self, unloaded_p50_s: float, unloaded_p95_s: float) -> float:
        """Deadline from the large tier's unloaded latency, whole milliseconds, rounded down."""
        chosen_s = min(unloaded_p95_s * self.deadline_factor, unloaded_p50_s * self.median_factor)
        return math.floor(chosen_s * 1e3) / 1e3

    def phases(self, capacity_rps: float) -> list[dict[str, float | str]]:
        """Rates over time of a replay, as a load spec takes it."""
        calm_rps = round(capacity_rps * self.calm_factor, 3)
        burst_rps = round(capacity_rps * self.burst_factor, 3)
        lengths = (self.calm_s, self.burst_s, self.recovery_s)
        rates = (calm_rps, burst_rps, calm_rps)
        return [
            {"name": name, "duration_s": length, "rate_rps": rate}
            for name, length, rate in zip(PHASES, lengths, rates, strict=True)
        ]
