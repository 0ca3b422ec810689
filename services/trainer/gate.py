"""The gate a policy passes before it is promoted: simulation, against the active policy.

What passes is active at once, or goes on in steps (`rollout.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from services.common.errors import FailedPreconditionError, cut
from services.common.log import Logger
from services.trainer.jobs import MeshSpec
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord, RolloutState
from services.trainer.promotion import Promoter, Promotion
from services.trainer.registry import ActivePolicy, PolicyRegistry
from services.trainer.rollout import RolloutHeldError, Rollouts
from services.trainer.settings import RolloutMode
from trainer.evaluation.class_gap import ClassGap

BASELINE = "price"
"""What a first policy is measured against."""

_ANCHOR_MARGINS = 2.0
"""Beside the anchor a policy may be worse by so many margins: each step may take one, all two."""
_BOTH = ("performance", "availability")
_LONGEST_VERDICT_BYTES = 1_000
"""Records of policies have room for so much; what a policy is refused for stands first."""

Scores = dict[str, float]


class GateRefusedError(FailedPreconditionError):
    """A policy is worse than the active one by more than the margin."""


class Evaluator(Protocol):
    """Scores policies in the simulator; `Worker` on a `SimulationJob` is one."""

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, on_progress: Any = None
    ) -> Any:
        """Runs a method of the job."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """What the gate found.

    Attributes:
        passed: True if the policy may be promoted.
        text: one sentence for people.
        scores: simulated scores of the candidate.
        is_anchor_reached: True if the active policy is no worse than the anchor in any score.
    """

    passed: bool
    text: str
    scores: Scores
    is_anchor_reached: bool = False


class _Rival(NamedTuple):
    """What a candidate is compared with.

    Attributes:
        told: it in words.
        policy: its name.
        snapshot: its snapshot; None for policies without one.
        margin: how much worse than it a candidate may be.
        scores: names of the scores that count.
    """

    told: str
    policy: str
    snapshot: bytes | None
    margin: float
    scores: tuple[str, ...]


class Gate:
    """Compares a candidate with the active policy on the mesh's own profile."""

    def __init__(
        self,
        *,
        evaluator: Evaluator,
        spec: MeshSpec,
        margin: float,
        seeds: Sequence[int],
        timeout_s: float,
        promoter: Promoter,
        rollouts: Rollouts,
        rollout: RolloutMode,
        log: Logger,
        metrics: TrainerMetrics,
        priority_mix: Mapping[str, float] | None = None,
        learned: Callable[[MeshSpec], MeshSpec] | None = None,
    ) -> None:
        """Takes its parts.

        Args:
            evaluator: scores policies.
            spec: the mesh.
            margin: how much worse a candidate may be, a fraction.
            seeds: of the simulations.
            timeout_s: longest time of an evaluation, seconds.
            promoter: activates what passes.
            rollouts: takes what passes on in steps.
            rollout: which promotions go on in steps.
            log: log.
            metrics: metrics.
            priority_mix: share of each priority class in what is simulated, each of which is judged
                by itself; none or empty: all requests are normal.
            learned: returns the mesh with the qualities that it has learned; none: it learns none.
        """
        self._learned = learned
        self._priority_mix = dict(priority_mix or {})
        self._promoter = promoter
        self._rollouts = rollouts
        self._rollout = rollout
        self._evaluator = evaluator
        self._spec = spec
        self._margin = margin
        self._seeds = tuple(seeds)
        self._timeout_s = timeout_s
        self._log = log
        self._metrics = metrics

    async def promote(
        self,
        registry: PolicyRegistry,
        record: PolicyRecord,
        snapshot: bytes,
        *,
        by_hand: bool,
        in_steps: bool | None = None,
    ) -> Promotion:
        """Activates a published snapshot that passes or begins its rollout; rejects another one.

        Args:
            registry: where it is published.
            record: the policy.
            snapshot: its snapshot.
            by_hand: somebody asked for it.
            in_steps: whether it goes on in steps; None for what the settings say.

        Raises:
            GateRefusedError: It did not pass.
            RolloutHeldError: Another rollout is under way, or something is pinned by hand.
            FailedPreconditionError: It is to go on in steps, and nobody could hear routers.
            RoutersRefusedError: Routers refused it.
            AbortedError: Another policy became active meanwhile.
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        active, present = await registry.active(), registry.activation
        if active is not None and active.record.version == record.version:
            if by_hand:
                await self._rollouts.release()
            return Promotion(active)
        in_steps = self._goes_in_steps(by_hand, in_steps)
        if in_steps or not by_hand:
            try:
                self._rollouts.check_free(by_hand=by_hand)
            except RolloutHeldError as error:
                self._log.info("promotion_held", version=record.version, reason=str(error))
                raise
        anchor = await registry.anchor()
        is_active = anchor is not None and active is not None and _is_same(anchor[0], active.record)
        verdict = await self.judge(record.policy, snapshot, active, None if is_active else anchor)
        is_best = anchor is None or verdict.is_anchor_reached
        # What became active meanwhile may have brought an anchor of its own.
        if is_best and active is not None and active.snapshot and registry.activation == present:
            await registry.change_rollout(partial(_anchored, active.record))
        if not verdict.passed:
            await registry.reject(record.policy, record.version, verdict.text)
            await self._rollouts.drop(record, "the gate refused it")
            raise GateRefusedError(f"the gate refused it: {verdict.text}", reason="GATE_REFUSED")
        await registry.accept(record.policy, record.version)
        if in_steps:
            state = await self._rollouts.begin(record, verdict.text, by_hand=by_hand)
            return Promotion(active, rollout=state, verdict=verdict.text)
        promotion = await self._rollouts.carry_out(
            lambda note: self._promoter.promote(record.policy, record.version, present, note=note),
            by_hand=False,
            is_watched=True,
        )
        return promotion._replace(verdict=verdict.text)

    def _goes_in_steps(self, by_hand: bool, in_steps: bool | None) -> bool:
        """Returns whether what passes goes on in steps.

        Who asks for a policy by hand looks at what becomes of it; of others nobody does.
        """
        if in_steps is not None:
            return in_steps
        wanted = self._rollout == "always" or (self._rollout == "unattended" and not by_hand)
        if wanted and not self._rollouts.is_possible:
            self._log.warning("rollout_impossible", reason="there is no load monitor")
            return False
        return wanted

    async def judge(
        self,
        policy: str,
        candidate: bytes,
        active: ActivePolicy | None,
        anchor: tuple[PolicyRecord, bytes] | None = None,
    ) -> Simulated:
        """Returns whether the candidate may replace the active policy.

        It may be worse than neither the active policy nor, in performance, the baseline: else a
        weak active policy would let in anything. Beside the anchor, the best of those that were
        active, twice the margin holds: else each of many promotions might lose a little. Where
        requests are of several priority classes the same holds for each class, as far as the
        figures can tell: what is gained for one must not be taken from another.

        Raises:
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        rivals = self._rivals(active, anchor)
        asked = [(policy, candidate), *((each.policy, each.snapshot) for each in rivals)]
        spec = self._spec if self._learned is None else self._learned(self._spec)
        found, gaps = await self._simulated(spec, asked)
        scores, theirs = found[0], found[1:]
        # Written so that a score that is no number does not pass.
        passed = all(
            scores[key] >= reference[key] - rival.margin
            for rival, reference in zip(rivals, theirs, strict=True)
            for key in rival.scores
        )
        text = f"simulated {_told(scores)}; " + "; ".join(
            f"{rival.told} has {_told(each)}" for rival, each in zip(rivals, theirs, strict=True)
        )
        text += f"; margin {self._margin:g}"
        if spec.quality != self._spec.quality:
            text += "; by the qualities that the mesh has learned"
        worse = self._worse(rivals, gaps)
        passed &= not worse
        text = "; ".join([*worse, text, *_by_class(rivals[0].told, gaps[0] if gaps else ())])
        text = cut(text, _LONGEST_VERDICT_BYTES)
        self._metrics.gate_decisions.labels("passed" if passed else "failed").inc()
        self._log.info("gate", passed=passed, verdict=text)
        is_reached = anchor is not None and all(theirs[0][key] >= theirs[1][key] for key in _BOTH)
        return Simulated(passed, text, scores, is_reached)

    def _rivals(
        self, active: ActivePolicy | None, anchor: tuple[PolicyRecord, bytes] | None
    ) -> list[_Rival]:
        """Returns what a candidate is compared with: the reference, the anchor, the baseline."""
        baseline = _Rival(BASELINE, BASELINE, None, self._margin, _BOTH)
        rivals = [baseline]
        if active is not None and active.record.policy != BASELINE:
            name = active.record.policy
            rivals = [
                _Rival(name, name, active.snapshot or None, self._margin, _BOTH),
                baseline._replace(scores=("performance",)),
            ]
        if anchor is not None:
            record, blob = anchor
            told = f"{record.policy} {record.version}, the best before (twice the margin),"
            margin = _ANCHOR_MARGINS * self._margin
            rivals.insert(1, _Rival(told, record.policy, blob or None, margin, _BOTH))
        return rivals

    async def _simulated(
        self, spec: MeshSpec, policies: Sequence[tuple[str, bytes | None]]
    ) -> tuple[list[Scores], list[list[ClassGap]]]:
        """Returns scores of each policy, and how the first does by class beside each other one."""
        asked = spec, policies, self._seeds
        if not self._priority_mix:
            return await self._evaluator.call("evaluate", *asked, timeout_s=self._timeout_s), []
        found: tuple[list[Scores], list[list[ClassGap]]] = await self._evaluator.call(
            "evaluate_by_class", *asked, self._priority_mix, timeout_s=self._timeout_s
        )
        return found

    def _worse(self, rivals: Sequence[_Rival], gaps: Sequence[Sequence[ClassGap]]) -> list[str]:
        """Returns for which classes the policy is surely worse, in words; logs every class."""
        found = []
        for rival, each in zip(rivals, gaps, strict=bool(gaps)):
            for gap in each:
                is_worse = gap.score in rival.scores and gap.is_worse(rival.margin)
                self._log.info(
                    "gate_class",
                    priority=gap.priority,
                    score=gap.score,
                    beside=rival.told,
                    value=gap.value,
                    reference=gap.reference,
                    half=gap.half,
                    is_worse=is_worse,
                )
                if is_worse:
                    found.append(f"worse for {gap.priority} priority: {gap} beside {rival.told}")
        return found


def _by_class(rival: str, gaps: Sequence[ClassGap]) -> list[str]:
    """Returns how the policy does by each class beside a rival, in words."""
    by_priority: dict[str, list[str]] = {}
    for gap in gaps:
        by_priority.setdefault(gap.priority, []).append(str(gap))
    return [f"{name} beside {rival}: {', '.join(each)}" for name, each in by_priority.items()]


def _is_same(one: PolicyRecord, other: PolicyRecord) -> bool:
    return (one.policy, one.version) == (other.policy, other.version)


def _anchored(record: PolicyRecord, state: RolloutState) -> RolloutState:
    """Returns a state with another anchor."""
    return replace(state, anchor=record.policy, anchor_version=record.version)


def _told(scores: Scores) -> str:
    return f"performance {scores['performance']:.4f} and availability {scores['availability']:.4f}"
