"""A live router holds targets: what teaches it, what it does, what a reload changes."""

from __future__ import annotations

import dataclasses

from router.pressure import FLOOR, HIGHEST
from services.router_inference.job import NOT_HELD, Held, Job, Outcome
from services.router_inference.path.hold import TargetHold
from tests.unit.services.router_inference.parts import TASKS, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

NOW_S = 100.0


def hold(*targets: float) -> TargetHold:
    """Returns one that has served for long."""
    return TargetHold(targets, NOW_S - 60.0)


def ended(outcome: Outcome) -> Job:
    """Returns a request of the first task that ended so."""
    job = make_rig().job()
    job.outcome = outcome
    return job


def taught(*ends: tuple[Outcome, bool]) -> float:
    """Returns the pressure after these ends, each with whether it was refused as hopeless."""
    found = hold(0.99)
    for outcome, is_hopeless in ends:
        found.on_end(ended(outcome), NOW_S, is_hopeless=is_hopeless)
    return found.pressure()


@scenario
async def test_what_raises_the_pressure() -> None:
    """Late answers and hopeless refusals do; cancelled, failed and other refused ones do not."""
    assert taught((Outcome.LATE, False)) > 1.0
    assert taught((Outcome.REFUSED, True)) > 1.0
    for outcome in (Outcome.ON_TIME, Outcome.CANCELLED, Outcome.FAILED, Outcome.REFUSED):
        assert taught((outcome, False)) == 0.0


@scenario
async def test_a_miss_makes_requests_small_and_time_ends_that() -> None:
    """Device time costs more at once; after some twenty deadlines the price decides again."""
    found, job = hold(0.99), make_rig().job()
    for _ in range(20):
        found.on_end(ended(Outcome.LATE), NOW_S, is_hopeless=False)
    held = found.held(job.request, NOW_S)
    assert (held.is_small, held.is_floored) == (True, True)
    assert FLOOR <= held.pressure <= HIGHEST
    held = found.held(job.request, NOW_S + 10.0)
    assert (held.pressure, held.is_small, held.is_floored) == (0.0, False, False)


@scenario
async def test_soft_deadlines_and_tasks_without_target_are_not_held() -> None:
    """Neither do they teach anything."""
    rig = make_rig()
    assert hold(0.99, 0.99).held(rig.job(task="soft").request, NOW_S) == NOT_HELD
    assert hold(0.0).held(rig.job().request, NOW_S) == NOT_HELD
    assert hold().held(rig.job().request, NOW_S) == NOT_HELD


@scenario
async def test_a_router_that_begins_to_serve_is_small_for_a_deadline() -> None:
    """It knows nothing of the traffic; admission stays at rest meanwhile."""
    found, job = hold(0.99), make_rig().job(deadline_s=0.4)
    found.begin(NOW_S)
    held = found.held(job.request, NOW_S + 0.1)
    assert (held.is_small, held.is_floored) == (True, False)
    assert not found.held(job.request, NOW_S + 0.5).is_small


@scenario
async def test_other_targets_keep_what_was_learned() -> None:
    """A task added at the end starts at rest."""
    found = hold(0.99)
    found.on_end(ended(Outcome.LATE), NOW_S, is_hopeless=False)
    before = found.pressure()
    found.configure((0.9, 0.9))
    assert found.pressure() == before > 0.0


@scenario
async def test_the_gauge_shows_the_pressure() -> None:
    """As a scrape would see it after the next refresh."""
    rig = make_rig()
    job = rig.job()
    job.outcome = Outcome.LATE
    rig.core.hold.on_end(job, rig.clock.monotonic_s(), is_hopeless=False)
    rig.core.status._show(rig.clock.monotonic_s())
    assert gauge(rig) == rig.core.hold.pressure() > 0.0


@scenario
async def test_the_safety_net_off_holds_nothing() -> None:
    """Targets are part of it."""
    rig = make_rig(safety_net=False)
    assert rig.core.hold.held(rig.job().request, rig.clock.monotonic_s()) == NOT_HELD


@scenario
async def test_a_router_follows_the_targets_of_its_tasks() -> None:
    """Those of the catalog; 0 means none."""
    tasks = tuple(dataclasses.replace(task, target=0.0) for task in TASKS)
    rig = make_rig(tasks=tasks)
    assert rig.core.hold.held(rig.job().request, rig.clock.monotonic_s()) == NOT_HELD


def gauge(rig: Rig) -> float:
    """Returns the metric."""
    found = next(iter(rig.core.accounts.metrics.target_pressure.collect()))
    return float(found.samples[0].value)


@scenario
async def test_at_rest_a_request_is_held_as_one_that_is_reckoned() -> None:
    """What is answered at first sight is what the kernels come to; not while it is cold."""
    found, job = hold(0.99), make_rig().job()
    for now_s in (NOW_S, NOW_S + 0.1):
        assert found.held(job.request, now_s) == Held(0.99, 0.0, False)
    found.begin(NOW_S + 1.0)
    assert found.held(job.request, NOW_S + 1.1).is_small
    assert found.held(job.request, NOW_S + 3.0) == Held(0.99, 0.0, False)
    found.configure([0.9])
    assert found.held(job.request, NOW_S + 3.0).target == 0.9
    found.on_end(ended(Outcome.LATE), NOW_S + 3.0, is_hopeless=False)
    assert found.held(job.request, NOW_S + 3.0).pressure == found.pressure() > 0.0


@scenario
async def test_what_was_claimed_presses_too() -> None:
    """Also where nothing that the router saw itself does."""
    rig, found = make_rig(), hold(0.99)
    job = rig.job()
    assert found.held(job.request, NOW_S).pressure == 0.0
    rig.core.dispatcher._decider.decide(job)
    job.is_routed, job.outcome = True, Outcome.LATE
    found.on_end(job, NOW_S, is_hopeless=False)
    assert found.held(job.request, NOW_S).pressure == found.pressure() > 0.0
