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
        log: Logger,
        metrics: TrainerMetrics,
    ) -> None:
        """Takes the evaluator, the mesh, and how much worse a candidate may be (a fraction)."""
        self._evaluator = evaluator
        self._spec = spec
        self._margin = margin
        self._seeds = tuple(seeds)
        self._timeout_s = timeout_s
        self._log = log
        self._metrics = metrics

    async def promote(
        self, registry: PolicyRegistry, record: PolicyRecord, snapshot: bytes
    ) -> ActivePolicy:
        """Activates a published snapshot that passes, and rejects one that does not.

        Raises:
            GateRefusedError: It did not pass.
            AbortedError: Another policy became active meanwhile.
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        active = await registry.active()
        if active is not None and active.record.version == record.version:
            return active
        verdict = await self.judge(snapshot, active)
        if not verdict.passed:
            await registry.reject(record.policy, record.version, verdict.text)
            raise GateRefusedError(f"the gate refused it: {verdict.text}", reason="GATE_REFUSED")
        expected = active.activation if active is not None else None
        return await registry.promote(record.policy, record.version, expected)

    async def judge(self, candidate: bytes, active: ActivePolicy | None) -> Verdict:
        """Returns whether the candidate may replace the active policy.

        Raises:
            WorkerDiedError: The simulation did not end.
            WorkerError: The simulation failed.
        """
        name, snapshot = BASELINE, None
        if active is not None:
            name, snapshot = active.record.policy, active.snapshot or None
        found: list[Scores] = await self._evaluator.call(
            "evaluate",
            self._spec,
            [("dqn", candidate), (name, snapshot)],
            self._seeds,
            timeout_s=self._timeout_s,
        )
        scores, reference = found
        passed = all(
            scores[key] >= reference[key] - self._margin for key in ("performance", "availability")
        )
        text = (
            f"simulated performance {scores['performance']:.4f} and availability "
            f"{scores['availability']:.4f}; {name} has {reference['performance']:.4f} and "
            f"{reference['availability']:.4f}; margin {self._margin:g}"
        )
        self._metrics.gate_decisions.labels("passed" if passed else "failed").inc()
        self._log.info("gate", passed=passed, verdict=text)
        return Verdict(passed, text, scores)
