"""What a process has seen of the policy on trial: sums, which those of other processes add to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from router.sequential import Arms
from services.router_inference.workers.memory import TRIAL_WIDTH

REASON_FAULTS = "CANARY_FAULTS"
REASON_MISSES = "CANARY_MISSES"
REASON_SLOW = "CANARY_SLOW"
_REASONS = ("", REASON_FAULTS, REASON_MISSES, REASON_SLOW)
"""Why a worker stops a trial by what it saw; what it refuses, every worker refuses."""
_HEAD = 3


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

    def numbers(self) -> dict[str, float]:
        """Returns them by their names in the contract's `ShadowCounts`."""
        return {
            "decision_count": self.decisions,
            "same_candidate_count": self.same_candidate,
            "same_tier_count": self.same_tier,
            "fault_count": self.faults,
            "top_candidate_count": max(self.candidates.values(), default=0),
            "active_top_candidate_count": max(self.active_candidates.values(), default=0),
            "top_tier_count": max(self.tiers.values(), default=0),
            "active_top_tier_count": max(self.active_tiers.values(), default=0),
            "decision_s": self.decision_s,
            "active_decision_s": self.active_decision_s,
            "value_gain": self.value_gain,
        }


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
        values: the sequential test on their values, each less the best that the moment offered.
    """

    canary: ArmCounts = field(default_factory=ArmCounts)
    control: ArmCounts = field(default_factory=ArmCounts)
    faults: int = 0
    values: Arms = field(default_factory=lambda: Arms(-1.0, 1.0))

    def numbers(self) -> dict[str, float]:
        """Returns them by their names in the contract's `CanaryCounts`."""
        canary, control, effect = self.canary, self.control, self.values.effect
        return {
            "request_count": canary.requests,
            "missed_count": canary.missed,
            "value_sum": canary.value_sum,
            "control_count": control.requests,
            "control_missed_count": control.missed,
            "control_value_sum": control.value_sum,
            "fault_count": self.faults,
            "decision_s": canary.decision_s,
            "control_decision_s": control.decision_s,
            "effect_count": effect.drawn,
            "effect_total": effect.total,
            "effect_square": effect.square,
        }


@dataclass(slots=True)
class PeriodCounts:
    """Requests of one period of a switchback.

    Attributes:
        requests: that ended.
        missed: of these, late, failed, given up, or refused since they would have been late.
        reward: sum of their delivered rewards.
    """

    requests: int = 0
    missed: int = 0
    reward: float = 0.0


@dataclass(slots=True)
class SwitchCounts:
    """Requests of the last two periods of a switchback.

    Attributes:
        period: number of the present one, from 1.
        present: its requests.
        last: those of the period before.
        faults: decisions of the stage in which the policy on trial failed.
    """

    period: int = 0
    present: PeriodCounts = field(default_factory=PeriodCounts)
    last: PeriodCounts = field(default_factory=PeriodCounts)
    faults: int = 0

    def numbers(self) -> dict[str, float]:
        """Returns them by their names in the contract's `SwitchbackCounts`."""
        return {
            "period": self.period,
            "request_count": self.present.requests,
            "missed_count": self.present.missed,
            "reward_sum": self.present.reward,
            "last_request_count": self.last.requests,
            "last_missed_count": self.last.missed,
            "last_reward_sum": self.last.reward,
            "fault_count": self.faults,
        }


class TrialSeen(NamedTuple):
    """What a process has seen of a trial.

    Attributes:
        rollout: number of the rollout.
        is_canary: it is in a stage in which it decides.
        problem: why the policy is asked no more, a reason; empty if it is.
        detail: the same in words.
        shadow: what it was asked beside; None in other stages.
        canary: how requests ended; None in other stages.
        switch: how requests of periods ended; None in other stages.
    """

    rollout: int
    is_canary: bool
    problem: str
    detail: str
    shadow: ShadowCounts | None
    canary: CanaryCounts | None
    switch: SwitchCounts | None = None

    @property
    def stage(self) -> float:
        """The stage as a number that siblings compare."""
        return float(self.is_canary) + (self.switch is not None)


class TrialTold(NamedTuple):
    """What a router reports of a trial: the sum over its workers.

    Attributes:
        rollout: number of the rollout.
        is_canary: what the numbers are of that stage.
        problem: why the policy is asked no more, a reason; empty if it is.
        detail: the same in words.
        numbers: by their names in the contract.
    """

    rollout: int
    is_canary: bool
    problem: str
    detail: str
    numbers: Mapping[str, float]


def reported(seen: TrialSeen, siblings: Iterable[NDArray[np.float64]] = ()) -> TrialTold:
    """Returns what a process and its siblings have seen together, by `row_of` of each of them."""
    is_canary = seen.is_canary
    if seen.switch is not None:
        numbers = seen.switch.numbers()
    elif is_canary:
        numbers = (seen.canary or CanaryCounts()).numbers()
    else:
        numbers = (seen.shadow or ShadowCounts()).numbers()
    problem, detail = seen.problem, seen.detail
    for row in siblings:
        if (row[0], row[1]) != (seen.rollout, seen.stage):
            continue  # one that has not heard of the stage yet, or has no trial
        if seen.switch is not None and row[_HEAD] != seen.switch.period:
            continue  # nor of the period
        for place, name in enumerate(numbers, _HEAD):
            if name != "period":
                numbers[name] += float(row[place])
        if row[2] and not problem:
            problem, detail = _REASONS[int(row[2])], "another worker saw it"
    return TrialTold(seen.rollout, is_canary, problem, detail, numbers)


def row_of(seen: TrialSeen | None) -> NDArray[np.float64]:
    """Returns what a process shows its siblings, all zero for no trial."""
    row = np.zeros(TRIAL_WIDTH)
    if seen is not None:
        own = reported(seen)
        reason = _REASONS.index(own.problem) if own.problem in _REASONS else 0
        values = (own.rollout, seen.stage, reason, *own.numbers.values())
        row[: len(values)] = values
    return row
