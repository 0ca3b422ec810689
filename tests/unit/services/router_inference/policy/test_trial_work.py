"""The limits that a canary must keep to, each by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from router.guard import Guard
from router.ruler import Ruler
from router.types import Priority
from services.router_inference.job import Choice
from services.router_inference.policy.trial_counts import (
    REASON_FAULTS,
    REASON_MISSES,
    REASON_SLOW,
)
from services.router_inference.policy.trial_work import Canary, Ended, TrialLimits
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario

LIMITS = TrialLimits(cpu_share=0.02, misses=0.02, decision_s=0.002)


async def bench() -> tuple[Canary, Choice, Rig]:
    """Returns a canary that has seen nothing, and a decision."""
    rig = make_rig()
    job = rig.job()
    await rig.answer(job)
    guard = Guard(policy=None, fallback=rig.core.slot.guard.fallback)
    return Canary(guard, Ruler(), rig.app._metrics), choice_of(job), rig


def ended(choice: Choice, is_canary: bool, decision_s: float, is_missed: bool = False) -> Ended:
    """Returns a request that took some time to decide."""
    timed = replace(choice, end_s=choice.start_s + decision_s)
    return Ended(timed, is_canary, 0.0 if is_missed else 1.0, is_missed)


@scenario
async def test_a_slow_canary_must_stop() -> None:
    """By the mean time of its decisions, beside its control's."""
    canary, choice, _ = await bench()
    for number in range(100):
        canary.measure(ended(choice, number % 2 == 0, 0.01 if number % 2 == 0 else 0.0001))
    problem = canary.problem(LIMITS)
    assert problem is not None
    assert problem[0] == REASON_SLOW
    assert "0.010000" in problem[1]


@scenario
async def test_where_everything_is_slow_a_canary_is_not_to_blame() -> None:
    """As in plain Python, or on a machine that is busy with other things."""
    canary, choice, _ = await bench()
    for number in range(100):
        canary.measure(ended(choice, number % 2 == 0, 0.01))
    assert canary.problem(LIMITS) is None


@scenario
async def test_misses_are_seen_anew_after_a_while() -> None:
    """A canary that was good for long is stopped as soon as a new one once it goes bad."""
    canary, choice, _ = await bench()
    rng = np.random.default_rng(1)

    def serve(count: int, missing: float) -> None:
        for _ in range(count):
            is_canary = bool(rng.random() < 0.5)
            is_missed = is_canary and bool(rng.random() < missing)
            canary.measure(ended(choice, is_canary, 0.0001, is_missed))

    serve(2_000, 0.0)
    assert canary.problem(LIMITS) is None
    serve(200, 1.0)
    problem = canary.problem(LIMITS)
    assert problem is not None
    assert problem[0] == REASON_MISSES


@scenario
async def test_faults_stop_it_at_the_third() -> None:
    """Two may be chance; whose they are is the guard's word."""
    canary, _, _ = await bench()
    for count, reason in ((2, None), (3, REASON_FAULTS)):
        canary.guard._counts["not_finite"] = count
        problem = canary.problem(LIMITS)
        assert (problem and problem[0]) == reason


@scenario
async def test_requests_of_both_sides_are_counted_by_priority() -> None:
    """So a class that fares badly shows, though all are judged together."""
    canary, choice, rig = await bench()
    low = replace(choice, standing=choice.standing._replace(priority=Priority.LOW))
    canary.measure(ended(low, True, 0.0001, is_missed=True))
    canary.measure(ended(choice, False, 0.0001))
    for arm, outcome, priority in (("canary", "missed", "low"), ("control", "on_time", "normal")):
        labels = {"arm": arm, "outcome": outcome, "priority": priority}
        assert rig.app.registry.get_sample_value("tiercel_trial_requests_total", labels) == 1.0
