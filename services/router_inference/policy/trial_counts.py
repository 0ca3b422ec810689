"""What a process has seen of the policy on trial: sums, which those of other processes add to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from router.sequential import Arms


@dataclass(slots=True)
class ShadowCounts:
    """Decisions taken again, by the policy on trial and by the one in force.

    Attributes:
        decisions: how many.
        same_candidate: both chose the same candidate.
        same_tier: both chose the same tier.
        faults: the policy on trial raised, or chose or scored what it must not.
        candidates: how often it chose each row.
        active_candidates: how often the policy in force did.
        tiers: how often it chose each tier.
        active_tiers: how often the policy in force did.
        decision_s: time it took, seconds.
        active_decision_s: time that the policy in force took, seconds.
        value_gain: sum of the predicted value of its choices, less that of the others.
    """

    decisions: int = 0
    same_candidate: int = 0
    same_tier: int = 0
    faults: int = 0
    candidates: Counter[int] = field(default_factory=Counter)
    active_candidates: Counter[int] = field(default_factory=Counter)
    tiers: Counter[int] = field(default_factory=Counter)
    active_tiers: Counter[int] = field(default_factory=Counter)
    decision_s: float = 0.0
    active_decision_s: float = 0.0
    value_gain: float = 0.0


@dataclass(slots=True)
class ArmCounts:
    """Requests of one arm that ended.

    Attributes:
        requests: how many.
        missed: late, failed, or given up on their first candidate.
        value_sum: sum of reward less price of the device time.
        decision_s: time of their decisions, seconds.
    """

    requests: int = 0
    missed: int = 0
    value_sum: float = 0.0
    decision_s: float = 0.0


@dataclass(slots=True)
class CanaryCounts:
    """How requests ended in both arms.

    Attributes:
        canary: what the policy on trial decided.
        control: what the policy in force decided.
        faults: decisions in which the policy on trial failed, and the fallback decided.
        values: the sequential test on their values.
    """

    canary: ArmCounts = field(default_factory=ArmCounts)
    control: ArmCounts = field(default_factory=ArmCounts)
    faults: int = 0
    values: Arms = field(default_factory=lambda: Arms(-1.0, 1.0))


class TrialSeen(NamedTuple):
    """What a process reports of a trial.

    Attributes:
        rollout: number of the rollout.
        problem: why the policy is asked no more, a reason; empty if it is.
        detail: the same in words.
        shadow: what it was asked beside; None once it decides a share.
        canary: how requests ended; None before.
    """

    rollout: int
    problem: str
    detail: str
    shadow: ShadowCounts | None
    canary: CanaryCounts | None
