"""What the registry and the runs know, as dataclasses; `convert.py` turns them into messages."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.trainer.rollout_verdicts import NOTHING_SEEN, CanarySeen, Verdict


class Stage(enum.Enum):
    """Where a policy stands; the values are those of the contract's `PolicyStage`."""

    BUILT_IN = 1
    PROPOSED = 2
    SHADOW = 3
    CANARY = 4
    ACTIVE = 5
    RETIRED = 6
    REJECTED = 7
    SWITCHBACK = 8


IN_ROLLOUT = (Stage.SHADOW, Stage.CANARY, Stage.SWITCHBACK)
"""Stages of a rollout that is under way."""


class Mode(enum.Enum):
    """Where a run's transitions come from; the contract's `TrainingMode`."""

    ONLINE = 1
    SIMULATED = 2


class RunState(enum.Enum):
    """State of a run; the contract's `TrainingState`."""

    RUNNING = 1
    SUCCEEDED = 2
    FAILED = 3
    STOPPED = 4


@dataclass(frozen=True, slots=True)
class RolloutStep:
    """One step of a rollout.

    Attributes:
        step_ns: when it was taken, nanoseconds since 1970.
        stage: where the policy stood from then on.
        verdict: what the stage before had found.
        reason: why.
    """

    step_ns: int
    stage: Stage
    verdict: Verdict
    reason: str


class WatchStage(enum.Enum):
    """How a watch stands; the contract's `WatchStage`, 0 for none."""

    NONE = 0
    UNDER_WAY = 1
    KEPT = 2
    WENT_BACK = 3
    ENDED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """The watch over a policy that has become active: the one under way, else the last one.

    Attributes:
        activation: that is watched; 0 = there was none.
        policy: name of its policy.
        version: version of its policy.
        replaced: name of the policy it replaced; empty for that of the routers' settings.
        replaced_version: version of that policy.
        stage: how it stands.
        reason: why it stands so.
        begin_ns: when it began, nanoseconds since 1970.
        end_ns: when it ends by itself, nanoseconds since 1970.
    """

    activation: int = 0
    policy: str = ""
    version: str = ""
    replaced: str = ""
    replaced_version: str = ""
    stage: WatchStage = WatchStage.NONE
    reason: str = ""
    begin_ns: int = 0
    end_ns: int = 0

    @property
    def is_under_way(self) -> bool:
        """True if routers are to watch it."""
        return self.stage is WatchStage.UNDER_WAY


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    """The rollout under way, else the last one; and what somebody pinned by hand.

    Attributes:
        number: of the rollout, above 0; 0 = there was none.
        policy: name of its policy.
        version: version of its policy.
        stage: one of `IN_ROLLOUT` while it is under way, else where it ended.
        is_paused: it waits for somebody.
        reason: why it stands where it does.
        begin_ns: when it began, nanoseconds since 1970.
        stage_ns: when its stage began, or began again after a pause; 0 if that is not known.
        activation: of the policy that was active when it began; 0 for none.
        pinned_activation: of what somebody activated by hand last; -1 for none.
        watch: over the policy that became active last.
        carried: what the canary's test had seen when the rollout was paused last.
        period: of the switchback, from 1; 0 in other stages.
        period_ns: when that period began, nanoseconds since 1970.
        judged: periods that were judged.
        differences: of each judged pair, what a request earned more under the policy on trial.
        anchor: name of the policy that the gate also compares with, so that small losses do not
            add up; empty for none.
        anchor_version: version of that policy.
        revision: counts in this process how often a rollout or a pin has changed, and so tells a
            state that was made of an older one; it is not stored.
    """

    number: int = 0
    policy: str = ""
    version: str = ""
    stage: Stage = Stage.PROPOSED
    is_paused: bool = False
    reason: str = ""
    begin_ns: int = 0
    stage_ns: int = 0
    activation: int = 0
    pinned_activation: int = -1
    watch: WatchState = WatchState()
    carried: CanarySeen = NOTHING_SEEN
    period: int = 0
    period_ns: int = 0
    judged: int = 0
    differences: tuple[float, ...] = ()
    anchor: str = ""
    anchor_version: str = ""
    revision: int = field(default=0, compare=False)

    @property
    def is_under_way(self) -> bool:
        """True if it has not ended, be it paused or not."""
        return self.number > 0 and self.stage in IN_ROLLOUT

    @property
    def is_running(self) -> bool:
        """True if routers try its policy."""
        return self.is_under_way and not self.is_paused


MOST_STEPS = 20
"""Steps of its rollouts that are kept with a policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """One policy as the registry knows it.

    Attributes:
        policy: name.
        version: version; empty for built-in policies.
        stage: where it stands.
        feature_schema: schema of its snapshot; empty without one.
        publish_ns: when it was published, nanoseconds since 1970; 0 for built-in policies.
        transition_count: transitions it was trained on.
        description: free text.
        scores: evaluation scores by name.
        rejection: why gate or routers rejected it; empty if they did not.
        force_reason: why somebody activated it in spite of that; empty if nobody did.
        steps: the last steps of its rollouts, oldest first.
    """

    policy: str
    version: str
    stage: Stage
    feature_schema: str = ""
    publish_ns: int = 0
    transition_count: int = 0
    description: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    rejection: str = ""
    force_reason: str = ""
    steps: tuple[RolloutStep, ...] = ()

    @classmethod
    def built_in(cls, name: str) -> PolicyRecord:
        """Returns the record of a policy that needs no snapshot."""
        return cls(policy=name, version="", stage=Stage.BUILT_IN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """Progress of a training run.

    Attributes:
        training_id: id of the run.
        mode: where transitions come from.
        state: its state.
        step_count: learner steps done.
        planned_step_count: steps planned, 0 = open-ended.
        transition_count: transitions taken in.
        loss: mean loss of the last steps, None before the first.
        mean_reward: mean reward per request, None before the first.
        epsilon: exploration rate.
        time_left_s: seconds, None if unknown.
        policy_version: version of the last published snapshot, empty if none.
        error: what went wrong, empty if nothing did.
        steps_per_second: speed.
    """

    training_id: str
    mode: Mode
    state: RunState = RunState.RUNNING
    step_count: int = 0
    planned_step_count: int = 0
    transition_count: int = 0
    loss: float | None = None
    mean_reward: float | None = None
    epsilon: float = 0.0
    time_left_s: float | None = None
    policy_version: str = ""
    error: str = ""
    steps_per_second: float = 0.0
