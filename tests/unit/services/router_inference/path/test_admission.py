"""Admission of a live router learns from how requests end, as the simulator's does."""

from __future__ import annotations

import asyncio
import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.safety import SafetyLimits
from router.types import Priority
from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.router_inference.job import Job, Outcome
from services.router_inference.path.admission import Admission
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import TASKS, Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.trainer.simulation.settings import config, traffic
from trainer.simulation import engine, state
from trainer.simulation.simulate import make_world

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

LIMITS = SafetyLimits(optimism=0.7, pessimism=1.75)
SLACK_S = 0.4


UNTARGETED = tuple(dataclasses.replace(task, target=0.0) for task in TASKS)
"""Without a target admission is all there is, and cautious as soon as deadlines are missed."""


def gauge(rig: Rig) -> float:
    """Returns the metric as a scrape would see it after the next refresh."""
    rig.core.status._show(rig.clock.monotonic_s())
    return float(next(iter(rig.core.accounts.metrics.admission_factor.collect())).samples[0].value)


async def miss(rig: Rig, count: int) -> None:
    """Has `count` requests cut off by their deadline."""
    rig.tier().default = Behaviour(hang=True)
    ends = await asyncio.gather(
        *(rig.answer(rig.job()) for _ in range(count)), return_exceptions=True
    )
    assert all(isinstance(end, DeadlineExceededError) for end in ends)
    rig.tier().default = Behaviour()


@scenario
async def test_a_hopeless_hard_request_is_refused() -> None:
    """Refused before any work, with limit, measured value and a time to come back."""
    rig = make_rig()
    job = rig.job(deadline_s=0.005)
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(job)
    error = caught.value
    assert error.reason == "DEADLINE_NOT_REACHABLE"
    assert error.metadata.keys() == {"limit", "measured", "factor"}
    assert error.metadata["factor"] == "0.700"
    assert error.retry_after_s is not None
    assert (job.outcome, job.reason) == (Outcome.REFUSED, "DEADLINE_NOT_REACHABLE")
    assert not rig.tier().calls
    rig.assert_settled()


@scenario
async def test_a_deadline_that_nobody_could_meet_moves_nothing() -> None:
    """Out of reach on idle devices, it is its caller's affair; under load all learn from it."""
    rig = make_rig(clients=[{"name": "one"}])
    core, clients = rig.core, rig.core.clients
    assert clients is not None
    for _ in range(50):
        job = rig.job(client="one", deadline_s=0.005)
        with pytest.raises(ResourceExhaustedError):
            await rig.answer(job)
        assert job.is_impossible
    assert (core.hold.pressure(), core.admission.caution.refused_s) == (0.0, 0.0)
    assert (clients._level, core.watch.in_force().requests) == (math.inf, 0.0)
    rig.fill()
    job = rig.job(client="one", deadline_s=0.1)
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(job)
    assert not job.is_impossible
    assert core.hold.pressure() > 0.0
    assert core.admission.caution.refused_s == rig.clock.monotonic_s()
    assert clients._level < math.inf
    assert core.watch.in_force().requests == 1.0


@scenario
async def test_a_deadline_that_nobody_could_meet_is_no_traffic() -> None:
    """Neither rates nor the mix of classes know of it, nor what the next one is decided by."""
    rig = make_rig()
    for _ in range(50):
        with pytest.raises(ResourceExhaustedError):
            await rig.answer(rig.job(deadline_s=0.005, priority=Priority.HIGH))
    traffic = rig.core.view.traffic
    assert traffic.own_rates_rps(rig.clock.monotonic_s()) == (0.0, 0.0)
    assert traffic.mean_prompt_tokens == 0.0
    job, only = rig.job(), make_rig()
    await rig.answer(job)
    first = only.job()
    await only.answer(first)
    assert job.choice is not None
    assert first.choice is not None
    assert job.choice.standing == first.choice.standing
    assert traffic.own_rates_rps(job.end_s) == only.core.view.traffic.own_rates_rps(first.end_s)


@scenario
async def test_a_hopeless_soft_request_is_served() -> None:
    """Soft deadlines are never refused."""
    rig = make_rig()
    job = rig.job(task="soft", deadline_s=0.005)
    await rig.answer(job)
    assert job.outcome is Outcome.LATE


@scenario
async def test_misses_raise_the_factor_and_time_lowers_it() -> None:
    """It rests at optimism, stands at pessimism after a deadline of misses, and rests again."""
    rig = make_rig(policy="static-small", tasks=UNTARGETED)
    assert gauge(rig) == 0.7
    await miss(rig, 40)
    assert gauge(rig) == pytest.approx(1.75)
    await asyncio.sleep(2.0)
    assert 0.7 < gauge(rig) < 1.75
    await asyncio.sleep(8.0)
    assert gauge(rig) == 0.7


@scenario
async def test_a_raised_factor_refuses_what_rest_would_admit() -> None:
    """The refusal names the factor it rests on."""
    rig = make_rig(policy="static-small", tasks=UNTARGETED)
    rig.tier().default = Behaviour(step_s=0.001)
    tight_s = 1.2 * 0.002 * rig.job().request.output_tokens  # 1.2 x the unloaded latency
    await rig.answer(rig.job(deadline_s=tight_s))
    for _ in range(40):
        late = rig.job()
        late.outcome = Outcome.LATE
        taught(rig, late)
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(deadline_s=tight_s))
    assert float(caught.value.metadata["factor"]) == pytest.approx(1.75, abs=0.01)
    assert "counted 1.7" in caught.value.metadata["measured"]


@scenario
async def test_where_a_target_is_held_tiers_come_before_refusals() -> None:
    """Misses make requests smaller; only what was late on the smallest tier raises the factor."""
    rig = make_rig(policy="static-small")
    await miss(rig, 5)
    assert rig.core.admission.caution.missed == 0.0
    await miss(rig, 40)
    assert rig.core.hold.pressure() == pytest.approx(4.0, abs=0.1)
    await miss(rig, 40)
    assert rig.core.admission.caution.missed > 10.0


@scenario
async def test_the_safety_net_off_learns_nothing() -> None:
    """The gauge says 0: a prediction times 0 refuses nothing."""
    rig = make_rig(policy="static-small", safety_net=False)
    await miss(rig, 40)
    assert gauge(rig) == 0.0


def taught(rig: Rig, job: Job) -> float:
    """Returns the misses counted after this end."""
    rig.core.admission.on_end(job)
    return rig.core.admission.caution.missed


@pytest.mark.parametrize(
    ("outcome", "retries", "rescued", "counted"),
    [
        (Outcome.LATE, 0, False, 1.0),
        (Outcome.LATE, 0, True, 1.0),
        (Outcome.LATE, 1, False, 0.0),
        (Outcome.CANCELLED, 0, False, 0.0),
        (Outcome.FAILED, 0, False, 0.0),
        (Outcome.REFUSED, 0, False, 0.0),
        (Outcome.ON_TIME, 0, False, 0.0),
    ],
)
def test_what_counts_as_a_miss(
    outcome: Outcome, retries: int, rescued: bool, counted: float
) -> None:
    """Late, rescued or not; not what the client cancelled, or failed, or was sent again."""

    async def run() -> None:
        rig = make_rig()
        job = rig.job()
        job.outcome, job.retry_count, job.is_rescued = outcome, retries, rescued
        assert taught(rig, job) == counted

    run_virtual(run())


@scenario
async def test_a_soft_request_teaches_nothing() -> None:
    """It is never refused either."""
    rig = make_rig()
    job = rig.job(task="soft")
    job.outcome = Outcome.LATE
    assert taught(rig, job) == 0.0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 0.3), st.booleans()), min_size=1, max_size=120))
def test_services_and_simulator_learn_the_same_factor(ends: list[tuple[float, bool]]) -> None:
    """The same outcomes at the same times give the same caution in both."""

    async def run() -> None:
        rig = make_rig()
        now = [0.0]
        admission = Admission(LIMITS, lambda: now[0])
        offered = traffic(500.0, 1.0, deadline_s=SLACK_S)
        world = make_world(config(safety=True, limits=LIMITS), offered, 0)
        request, job = world.requests[0], rig.job(deadline_s=SLACK_S)
        request["arrival_s"], request["deadline_s"], request["attempt"] = 0.0, SLACK_S, 1
        for gap_s, missed in ends:
            now[0] += gap_s
            job.outcome = Outcome.LATE if missed else Outcome.ON_TIME
            admission.on_end(job)
            request["status"] = state.CANCELLED if missed else state.ANSWERED
            request["on_time"] = not missed
            engine.teach_admission(world, 0, now[0])
        for name in ("raised", "ended", "missed", "at_s"):
            simulated = float(world.routers[name][0])
            assert getattr(admission.caution, name) == pytest.approx(simulated, rel=1e-9)

    run_virtual(run())
