"""The project's own learner in the arena."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainer.research.crosscheck.arenas import SMALL_PLAN, arena
from tests.unit.trainer.simulation.settings import spec
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.replay import Transitions
from trainer.research.crosscheck import library
from trainer.research.crosscheck.arena import Arena, play, play_compiled
from trainer.research.crosscheck.own import (
    Target,
    TrainingPlan,
    Variant,
    chooser,
    train_double_dqn,
)

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_own_learner_is_a_function_of_its_seed() -> None:
    """The same seed gives the same weights, another one others."""
    runs = [train_double_dqn(arena(), SMALL_PLAN, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0]["w1_FH"], runs[1]["w1_FH"])
    assert (runs[0]["w1_FH"] != runs[2]["w1_FH"]).any()


def sampled(where: Arena, variant: Variant, monkeypatch: pytest.MonkeyPatch) -> Transitions:
    """Returns what a short training run of this variant learned from, all batches together."""
    batches: list[Transitions] = []

    def step(_: DoubleDqnLearner, batch: Transitions) -> float:
        batches.append(batch)
        return 0.0

    monkeypatch.setattr(DoubleDqnLearner, "step", step)
    plan = TrainingPlan(800, warm_up_steps=500, batch_size=16)
    train_double_dqn(where, plan, 1, variant=variant)
    return Transitions(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


@pytest.mark.parametrize("rate_rps", [20.0, 60.0])
def test_targets_of_one_decision_are_the_librarys(
    rate_rps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every discount is the library's per decision, at every rate."""
    where = replace(arena(), low_rps=rate_rps, high_rps=rate_rps)
    seen = sampled(where, Variant(), monkeypatch)
    np.testing.assert_allclose(seen.discount_B, library.gamma(where), rtol=1e-6)


def test_targets_of_a_deadline_span_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values a deadline or more away count by elapsed time: at most exp(-deadline / tau)."""
    where = replace(arena(), low_rps=60.0)
    seen = sampled(where, Variant(target=Target.DEADLINE), monkeypatch)
    limit = math.exp(-1.0 / LearnerConfig().tau_deadlines)
    assert seen.discount_B.max() <= limit * (1 + 1e-6)
    assert np.median(seen.discount_B) > 0.8 * limit


def test_a_credited_decision_earns_what_its_own_request_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No return is above that of peak performance; what comes in between two decisions may be."""
    where = arena(low_rps=60.0)
    credited = sampled(where, Variant(credited=True), monkeypatch).return_B
    assert -1.0 <= credited.min() < credited.max() <= 0.0
    assert sampled(where, Variant(), monkeypatch).return_B.max() > 0.0


def test_own_learner_learns_what_a_random_policy_does_not() -> None:
    """Where only small tiers keep up, a few thousand steps beat choosing at random."""
    where = arena(low_rps=300.0, high_rps=300.0)
    plan = TrainingPlan(1_600, warm_up_steps=400, batch_size=32)
    arrays = train_double_dqn(where, plan, 1)
    offered = where.test(300.0, 900_001, 5.0)
    learned = play(where, chooser(arrays), offered, 0.8)
    drawn = play_compiled(where, spec("random"), offered, 0.8)
    assert learned.performance > drawn.performance + 0.2


def test_exploration_falls_to_its_end() -> None:
    """Epsilon starts at 1, is halfway at a quarter of the budget and stays at its end."""
    plan = TrainingPlan(1000, exploration_share=0.5, epsilon_end=0.1)
    assert [plan.epsilon(step) for step in (0, 250, 500, 999)] == pytest.approx(
        [1.0, 0.55, 0.1, 0.1]
    )
