"""The gate: a margin, and what the candidate is measured against."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from router.catalog import QualityTable
from router.profile import LatencyProfile
from services.common.log import get_logger
from services.trainer.gate import Gate
from services.trainer.jobs import MeshSpec
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord, Stage
from services.trainer.registry import ActivePolicy

SPEC = MeshSpec(
    profile=LatencyProfile("p", "assumed", {}),
    quality=QualityTable("q", "assumed", {}, {}),
    tasks=(),
    deadline_s=0.4,
    devices=(("a",),),
)


class Evaluator:
    """Returns given scores and remembers what it was asked."""

    def __init__(self, *scores: tuple[float, float]) -> None:
        self.answers = [{"performance": p, "availability": a} for p, a in scores]
        self.asked: Any = None

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, on_progress: Any = None
    ) -> Any:
        """Answers."""
        self.asked = (method, *arguments)
        return self.answers[: len(arguments[1])]


def gate(evaluator: Evaluator) -> Gate:
    """Returns a gate with a margin of half a point."""
    return Gate(
        evaluator=evaluator,
        spec=SPEC,
        margin=0.005,
        seeds=[1, 2],
        timeout_s=1.0,
        promoter=None,  # type: ignore[arg-type]  # judging promotes nothing
        rollouts=None,  # type: ignore[arg-type]
        rollout="never",
        log=get_logger("test"),
        metrics=TrainerMetrics(CollectorRegistry()),
    )


@pytest.mark.parametrize(
    ("candidate", "reference", "passed"),
    [
        ((0.90, 0.99), (0.90, 0.99), True),
        ((0.896, 0.986), (0.90, 0.99), True),
        ((0.894, 0.99), (0.90, 0.99), False),
        ((0.95, 0.98), (0.90, 0.99), False),
        ((math.nan, 0.99), (0.90, 0.99), False),
    ],
)
async def test_margin(
    candidate: tuple[float, float], reference: tuple[float, float], passed: bool
) -> None:
    """Neither performance nor availability may be worse by more than the margin."""
    verdict = await gate(Evaluator(candidate, reference)).judge("dqn", b"new", None)
    assert verdict.passed is passed
    assert "price" in verdict.text


async def test_measured_against_the_active_policy() -> None:
    """The reference is what is active, with its snapshot; price where nothing is."""
    evaluator = Evaluator((1.0, 1.0), (1.0, 1.0), (1.0, 1.0))
    record = PolicyRecord(policy="dqn", version="v", stage=Stage.ACTIVE)
    await gate(evaluator).judge("dqn", b"new", ActivePolicy(3, record, b"old"))
    rivals = [("dqn", b"old"), ("price", None)]
    assert evaluator.asked == ("evaluate", SPEC, [("dqn", b"new"), *rivals], (1, 2))
    await gate(evaluator).judge("dqn", b"new", None)
    assert evaluator.asked[2] == [("dqn", b"new"), ("price", None)]


async def test_a_weak_active_policy_lets_nothing_weak_in() -> None:
    """Better than the active policy is not enough where price performs better by far."""
    record = PolicyRecord(policy="static-small", version="", stage=Stage.ACTIVE)
    active = ActivePolicy(3, record, b"")
    weak = Evaluator((0.55, 0.99), (0.5, 0.99), (0.9, 0.95))
    assert not (await gate(weak).judge("dqn", b"new", active)).passed
    good = Evaluator((0.9, 0.99), (0.5, 0.99), (0.9, 0.95))
    assert (await gate(good).judge("dqn", b"new", active)).passed
