"""The gate: a margin, and what the candidate is measured against."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from router.catalog import QualityTable
from router.profile import LatencyProfile
from services.common.log import get_logger
from services.trainer.gate import Gate
from services.trainer.jobs import MeshSpec
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import PolicyRecord, Stage
from services.trainer.registry import ActivePolicy
from services.trainer.settings import TrainerSettings
from trainer.evaluation.class_gap import ClassGap

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


class ByClass(Evaluator):
    """Returns given gaps beside each rival too."""

    def __init__(self, *gaps: list[ClassGap]) -> None:
        super().__init__(*[(0.9, 0.99)] * (1 + len(gaps)))
        self.gaps = list(gaps)

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, on_progress: Any = None
    ) -> Any:
        """Answers."""
        return await super().call(method, *arguments, timeout_s=timeout_s), self.gaps


def gate(
    evaluator: Evaluator,
    mix: dict[str, float] | None = None,
    learned: Callable[[MeshSpec], MeshSpec] | None = None,
) -> Gate:
    """Returns a gate with a margin of half a point."""
    return Gate(
        priority_mix=mix,
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
        learned=learned,
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


async def test_judged_by_the_qualities_that_the_mesh_has_learned() -> None:
    """As they are when a policy is judged; the verdict says so."""
    tables = [QualityTable("q", "assumed", {"t": {"a": quality}}, {}) for quality in (0.5, 0.6)]
    evaluator = Evaluator((1.0, 1.0), (1.0, 1.0))
    judge = gate(evaluator, learned=lambda spec: replace(spec, quality=tables[-1]))
    for table in reversed(tables):
        verdict = await judge.judge("dqn", b"new", None)
        assert evaluator.asked[1] == replace(SPEC, quality=table)
        assert "the mesh has learned" in verdict.text
        tables.pop()
    same = await gate(evaluator, learned=lambda spec: spec).judge("dqn", b"new", None)
    assert "learned" not in same.text


async def test_a_weak_active_policy_lets_nothing_weak_in() -> None:
    """Better than the active policy is not enough where price performs better by far."""
    record = PolicyRecord(policy="static-small", version="", stage=Stage.ACTIVE)
    active = ActivePolicy(3, record, b"")
    weak = Evaluator((0.55, 0.99), (0.5, 0.99), (0.9, 0.95))
    assert not (await gate(weak).judge("dqn", b"new", active)).passed
    good = Evaluator((0.9, 0.99), (0.5, 0.99), (0.9, 0.95))
    assert (await gate(good).judge("dqn", b"new", active)).passed


@pytest.mark.parametrize(
    ("candidate", "passed"),
    [
        ((0.891, 0.981), True),
        ((0.8899, 0.985), False),  # within the margin of the active one, and too far from the best
        ((0.891, 0.9799), False),
    ],
)
async def test_beside_the_best_before_twice_the_margin_holds(
    candidate: tuple[float, float], passed: bool
) -> None:
    """In both scores, so that neither is given away bit by bit."""
    record = PolicyRecord(policy="dqn", version="v", stage=Stage.ACTIVE)
    best = PolicyRecord(policy="dqn", version="first", stage=Stage.RETIRED)
    evaluator = Evaluator(candidate, (0.893, 0.983), (0.9, 0.99), (0.5, 0.5))
    verdict = await gate(evaluator).judge(
        "dqn", b"new", ActivePolicy(3, record, b"old"), (best, b"first")
    )
    rivals = [("dqn", b"old"), ("dqn", b"first"), ("price", None)]
    assert evaluator.asked[2] == [("dqn", b"new"), *rivals]
    assert (verdict.passed, verdict.is_anchor_reached) == (passed, False)
    assert "dqn first, the best before (twice the margin), has performance 0.9000" in verdict.text


async def test_an_active_policy_that_is_no_worse_is_the_best() -> None:
    """It takes the place of the one before, unless it is worse in anything."""
    record = PolicyRecord(policy="dqn", version="v", stage=Stage.ACTIVE)
    best = PolicyRecord(policy="dqn", version="first", stage=Stage.RETIRED)
    for active, is_reached in (((0.9, 0.99), True), ((0.95, 0.9899), False)):
        evaluator = Evaluator((0.96, 0.99), active, (0.9, 0.99), (0.5, 0.5))
        verdict = await gate(evaluator).judge(
            "dqn", b"new", ActivePolicy(3, record, b"old"), (best, b"first")
        )
        assert verdict.is_anchor_reached is is_reached


MIX = {"high": 1.0, "normal": 3.0, "low": 1.0}


@pytest.mark.parametrize(
    ("value", "reference", "half", "passed"),
    [
        (0.80, 0.80, 0.001, True),
        (0.78, 0.80, 0.03, True),  # the interval reaches above 0: nobody can tell
        (0.797, 0.80, 0.001, True),  # surely worse, and within the margin
        (0.78, 0.80, 0.01, False),
        (math.nan, 0.80, 0.01, False),
    ],
)
@pytest.mark.parametrize("score", ["performance", "availability"])
async def test_each_priority_class_is_judged_by_itself(
    score: str, value: float, reference: float, half: float, passed: bool
) -> None:
    """All requests together are as good as before; that must not be at the cost of one class."""
    high = ClassGap("high", score, 0.9, 0.7, 0.01)
    evaluator = ByClass([high, ClassGap("low", score, value, reference, half)])
    verdict = await gate(evaluator, MIX).judge("dqn", b"new", None)
    assert evaluator.asked[0] == "evaluate_by_class"
    assert evaluator.asked[-1] == MIX
    assert verdict.passed is passed
    assert verdict.text.startswith(f"worse for low priority: {score}") is not passed
    assert f"high beside price: {score} 0.9000 (+0.2000 ± 0.0100)" in verdict.text


async def test_beside_the_baseline_a_class_is_judged_by_performance() -> None:
    """As all requests are: what price refuses the active policy may have to refuse less of."""
    record = PolicyRecord(policy="dqn", version="v", stage=Stage.ACTIVE)
    active = ActivePolicy(3, record, b"old")
    level = [ClassGap("low", score, 0.9, 0.9, 0.0) for score in ("performance", "availability")]
    for score, passed in (("availability", True), ("performance", False)):
        evaluator = ByClass(level, [ClassGap("low", score, 0.5, 0.9, 0.01)])
        verdict = await gate(evaluator, MIX).judge("dqn", b"new", active)
        assert verdict.passed is passed
        assert ("0.5000 (-0.4000 ± 0.0100) beside price" in verdict.text) is not passed


async def test_without_classes_nothing_is_said_of_them() -> None:
    """The gate asks what it always asked."""
    evaluator = Evaluator((0.9, 0.99), (0.9, 0.99))
    verdict = await gate(evaluator, {}).judge("dqn", b"new", None)
    assert evaluator.asked[0] == "evaluate"
    assert "priority" not in verdict.text
    assert verdict.text.endswith("margin 0.005")


def test_a_mix_needs_a_share() -> None:
    """One that is all zeros is refused by the name of the setting."""
    assert TrainerSettings(gate_priority_mix=MIX).gate_priority_mix == MIX
    for mix in ({"low": 0.0}, {"lowest": 1.0}, {"low": -1.0}):
        with pytest.raises(ValidationError, match="gate_priority_mix"):
            TrainerSettings(gate_priority_mix=mix)
