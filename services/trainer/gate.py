"""The gate a policy passes before it is promoted: simulation, against the active policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.common.errors import FailedPreconditionError
from services.common.log import Logger
from services.trainer.jobs import MeshSpec
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord
from services.trainer.promotion import Promoter, Promotion
from services.trainer.registry import ActivePolicy, PolicyRegistry

BASELINE = "price"
"""What a first policy is measured against."""

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
class Verdict:
    """What the gate found.

    Attributes:
        passed: True if the policy may be promoted.
        text: one sentence for people.
        scores: simulated scores of the candidate.
    """

    passed: bool
    text: str
    scores: Scores


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
        log: Logger,
        metrics: TrainerMetrics,
    ) -> None:
        """Takes the evaluator, the mesh, and how much worse a candidate may be (a fraction)."""
        self._promoter = promoter
        self._evaluator = evaluator
        self._spec = spec
        self._margin = margin
        self._seeds = tuple(seeds)
        self._timeout_s = timeout_s
        self._log = log
        self._metrics = metrics

    async def promote(
        self, registry: PolicyRegistry, record: PolicyRecord, snapshot: bytes
    ) -> Promotion:
        """Activates a published snapshot that passes, and rejects one that does not.

        Raises:
            GateRefusedError: It did not pass.
            RoutersRefusedError: Routers refused it.
            AbortedError: Another policy became active meanwhile.
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        active = await registry.active()
        if active is not None and active.record.version == record.version:
            return Promotion(active)
        verdict = await self.judge(record.policy, snapshot, active)
        if not verdict.passed:
            await registry.reject(record.policy, record.version, verdict.text)
            raise GateRefusedError(f"the gate refused it: {verdict.text}", reason="GATE_REFUSED")
        expected = active.activation if active is not None else None
        await registry.accept(record.policy, record.version)
        return await self._promoter.promote(record.policy, record.version, expected)

    async def judge(self, policy: str, candidate: bytes, active: ActivePolicy | None) -> Verdict:
        """Returns whether the candidate may replace the active policy.

        It may be worse than neither the active policy nor, in performance, the baseline: else a
        weak active policy would let in anything.

        Raises:
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        rivals: list[tuple[str, bytes | None]] = [(BASELINE, None)]
        if active is not None and active.record.policy != BASELINE:
            rivals.insert(0, (active.record.policy, active.snapshot or None))
        found: list[Scores] = await self._evaluator.call(
            "evaluate",
            self._spec,
            [(policy, candidate), *rivals],
            self._seeds,
            timeout_s=self._timeout_s,
        )
        scores, reference = found[0], found[1]
        least = {key: reference[key] - self._margin for key in ("performance", "availability")}
        least["performance"] = max(least["performance"], found[-1]["performance"] - self._margin)
        # Written so that a score that is no number does not pass.
        passed = all(scores[key] >= lowest for key, lowest in least.items())
        text = f"simulated {_told(scores)}; " + "; ".join(
            f"{name} has {_told(each)}" for (name, _), each in zip(rivals, found[1:], strict=True)
        )
        text += f"; margin {self._margin:g}"
        self._metrics.gate_decisions.labels("passed" if passed else "failed").inc()
        self._log.info("gate", passed=passed, verdict=text)
        return Verdict(passed, text, scores)


def _told(scores: Scores) -> str:
    return f"performance {scores['performance']:.4f} and availability {scores['availability']:.4f}"
