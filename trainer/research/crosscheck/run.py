"""The comparison itself: every learner with the same budget, tested on the same requests.

rows = crosscheck(arena, rates_rps=(50.0, 500.0), seeds=(1, 2, 3), plan=TrainingPlan(100_000))
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from router.policies.table import make_policy
from trainer.evaluation.rows import Row, measured
from trainer.research.crosscheck.arena import Arena, Choose, Score, play, play_compiled
from trainer.research.crosscheck.library import LIBRARY_LEARNERS, train_library
from trainer.research.crosscheck.networks import Network
from trainer.research.crosscheck.own import (
    OnStep,
    Target,
    TrainingPlan,
    Variant,
    chooser,
    train_double_dqn,
)
from trainer.simulation.simulate import PolicySpec
from trainer.simulation.workload import Workload

OWN = "double-dqn"
OWN_VARIANTS = {
    OWN: Variant(),
    f"{OWN}-flat": Variant(Network.FLAT),
    f"{OWN}-credited": Variant(credited=True),
    f"{OWN}-deadline": Variant(target=Target.DEADLINE),
}
LEARNERS = (*OWN_VARIANTS, *LIBRARY_LEARNERS)
REFERENCES = ("random", "price")
"""Policies without learning that are scored on the same tests, the statics beside them."""

OnProgress = Callable[[str, float], None]
Tests = Mapping[float, Sequence[Workload]]


def crosscheck(
    arena: Arena,
    *,
    rates_rps: Sequence[float],
    seeds: Sequence[int],
    plan: TrainingPlan,
    test_seeds: Sequence[int],
    learners: Sequence[str] = LEARNERS,
    test_requests: int = 2_000,
    large_held_rps: float = 0.0,
    on_progress: OnProgress = lambda text, share: None,
) -> list[Row]:
    """Trains every learner once per seed and tests it at every rate.

    Args:
        arena: the environment.
        rates_rps: Poisson rates of the tests.
        seeds: of training; intervals of learners are over these.
        plan: budget and exploration, the same for all.
        test_seeds: of the tests, disjoint from training's; intervals of references are over these.
        learners: of LEARNERS.
        test_requests: requests of a test, about.
        large_held_rps: rate the largest tier holds alone, to state loads; 0 = unknown.
        on_progress: gets what is done now and the share of all training done.

    Returns:
        Rows of learner, steps, seeds, processor seconds of a training run, rate, load,
        availability and performance.

    Raises:
        LibraryMissingError: a learner's library is not installed.
    """
    tests = _tests(arena, rates_rps, test_seeds, test_requests)
    warm_up_s = 2.0 * arena.setting.deadline_s
    rows: list[Row] = []
    total = len(learners) * len(seeds) * plan.steps
    done = 0
    for learner in learners:
        scores: list[Mapping[float, Score]] = []
        taken_s: list[float] = []
        for seed in seeds:
            text = f"{learner}, seed {seed}"
            on_step = _throttled(on_progress, text, done, total)
            start_s = time.process_time()
            choose = _train(learner, arena, plan, seed, on_step)
            taken_s.append(time.process_time() - start_s)
            done += plan.steps
            on_progress(f"{text}: testing", done / total)
            scores.append(_test(arena, choose, tests, warm_up_s))
        facts = {"learner": learner, "steps": plan.steps, "seed_count": len(seeds)}
        facts |= {"seconds": round(float(np.mean(taken_s)), 2)}
        rows += _rows(facts, scores, rates_rps, large_held_rps)
    return rows + _references(arena, tests, warm_up_s, large_held_rps)


def _train(learner: str, arena: Arena, plan: TrainingPlan, seed: int, on_step: OnStep) -> Choose:
    variant = OWN_VARIANTS.get(learner)
    if variant is not None:
        return chooser(train_double_dqn(arena, plan, seed, on_step, variant), variant)
    return train_library(learner, arena, plan, seed, on_step)


def _tests(arena: Arena, rates: Sequence[float], seeds: Sequence[int], requests: int) -> Tests:
    shortest_s = 12.0 * arena.setting.deadline_s
    return {
        rate: [arena.test(rate, seed, max(requests / rate, shortest_s)) for seed in seeds]
        for rate in rates
    }


def _test(arena: Arena, choose: Choose, tests: Tests, warm_up_s: float) -> Mapping[float, Score]:
    """Returns the mean over test seeds at each rate."""
    return {
        rate: _mean([play(arena, choose, offered, warm_up_s) for offered in offers])
        for rate, offers in tests.items()
    }


def _references(arena: Arena, tests: Tests, warm_up_s: float, held_rps: float) -> list[Row]:
    names = [f"static-{tier}" for tier in arena.setting.catalog.tiers]
    rows: list[Row] = []
    for name in (*REFERENCES, *names):
        policy = PolicySpec.of(make_policy(name, arena.setting.catalog))
        count = len(next(iter(tests.values())))
        scores = [
            {
                rate: play_compiled(arena, policy, offers[k], warm_up_s)
                for rate, offers in tests.items()
            }
            for k in range(count)
        ]
        facts = {"learner": name, "steps": 0, "seed_count": count, "seconds": 0.0}
        rows += _rows(facts, scores, list(tests), held_rps)
    return rows


def _rows(
    facts: Row, scores: Sequence[Mapping[float, Score]], rates: Sequence[float], held_rps: float
) -> list[Row]:
    """Returns a row per rate: means over seeds with their intervals."""
    return [
        facts
        | {"rate_rps": round(rate, 1), "load": round(rate / held_rps, 2) if held_rps else None}
        | measured("availability", [score[rate].availability for score in scores])
        | measured("performance", [score[rate].performance for score in scores])
        for rate in rates
    ]


def _mean(scores: Sequence[Score]) -> Score:
    return Score(
        float(np.mean([score.availability for score in scores])),
        float(np.mean([score.performance for score in scores])),
    )


def _throttled(on_progress: OnProgress, text: str, done: int, total: int) -> OnStep:
    """Passes every hundredth step on: a terminal needs no more."""

    def on_step(step: int) -> None:
        if step % 100 == 0:
            on_progress(text, min(1.0, (done + step) / total))

    return on_step


def overall(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns each learner's mean performance over the rates."""
    names = dict.fromkeys(row["learner"] for row in rows)
    return {
        name: float(np.mean([row["performance"] for row in rows if row["learner"] == name]))
        for name in names
    }
