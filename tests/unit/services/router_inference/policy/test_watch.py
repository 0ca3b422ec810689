"""A router that watches the policy that has become active, and goes back by itself."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import pytest

from router.watch import REASON_FAULTS, REASON_MISSES, WatchLimits, WatchReport
from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.router_inference.job import Arm, Job
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.watch import NOT_WATCHED, Watched
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.place import Place
from services.router_inference.workers.siblings import SharedSiblings
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.policy.test_trial import (
    ALWAYS_LARGE,
    ALWAYS_SMALL,
    snapshot_bytes,
    tried,
)
from tests.unit.services.router_inference.scenario import scenario

LIMITS = WatchLimits(0.05, 0.02)


def promote(rig: Rig, snapshot: bytes, *, activation: int = 2, version: str = "v1") -> None:
    """Has the trainer activate a learned policy."""
    assert rig.core.slot.promote(Promoted("dqn", version, snapshot, b"", activation))


def order(rig: Rig, *, activation: int = 2, left_s: float = 600.0) -> None:
    """Has the trainer want it watched."""
    rig.core.watch.take(Watched(activation, LIMITS, left_s))


async def serve(rig: Rig, count: int) -> None:
    """Serves requests one after the other, and looks after each."""
    for _ in range(count):
        with suppress(DeadlineExceededError, ResourceExhaustedError):
            await rig.answer(rig.job())
        rig.core.watch.look()


def told(rig: Rig) -> WatchReport:
    """Returns what the router reports."""
    found = rig.core.watch.told()
    assert found is not None
    return found


def bad_rig(**own: object) -> Rig:
    """Returns a router whose large tier is always late, and its own policy always small."""
    settings = {"policy": "static-small", "safety_net": False, "learn_slowness": False, **own}
    rig = make_rig(**settings)  # type: ignore[arg-type]
    rig.tier().behaviours["large"] = Behaviour(step_s=0.3)
    return rig


@scenario
async def test_a_policy_that_misses_is_left_again(caplog: pytest.LogCaptureFixture) -> None:
    """For the one it replaced, within dozens of requests; log, metric, status, report say so."""
    rig = bad_rig()
    await serve(rig, 200)
    promote(rig, ALWAYS_LARGE)
    order(rig)
    assert rig.core.watch.watched_activation == 2
    with caplog.at_level(logging.WARNING):
        await serve(rig, 100)
    slot = rig.core.slot
    assert (slot.name, slot.refusal, slot.activation) == ("static-small", REASON_MISSES, 2)
    found = told(rig)
    assert (found.problem, found.activation) == (REASON_MISSES, 2)
    assert found.before.requests == 200
    assert 20 <= found.after.requests <= 70
    assert found.after.on_time_share == 0.0
    assert "policy_went_back" in [record.getMessage() for record in caplog.records]
    status = rig.core.status.read()
    assert status.watch_problem.startswith(f"{REASON_MISSES}: it misses")
    assert status.watched_activation == 0
    value = rig.app.registry.get_sample_value(
        "tiercel_watch_returns_total", {"reason": REASON_MISSES}
    )
    assert value == 1.0
    job = rig.job()
    await rig.answer(job)
    assert job.tier == "small"


@scenario
async def test_a_policy_that_nobody_wants_watched_stays() -> None:
    """As with a trainer of an earlier release, when the time is over, or another is meant."""
    for activation, left_s in ((0, 600.0), (2, 0.0), (1, 600.0)):
        rig = bad_rig()
        await serve(rig, 100)
        promote(rig, ALWAYS_LARGE)
        order(rig, activation=activation, left_s=left_s)
        await serve(rig, 60)
        assert rig.core.slot.name == "dqn"
        assert rig.core.watch.told() is None


@scenario
async def test_a_pin_by_hand_wins() -> None:
    """What somebody wants used on this router is used, however it does."""
    rig = bad_rig()
    await serve(rig, 100)
    promote(rig, ALWAYS_SMALL)
    order(rig)
    rig.core.slot.use("static-large")
    await serve(rig, 60)
    assert rig.core.slot.name == "static-large"
    assert rig.core.watch.told() is None


@scenario
async def test_a_good_policy_stays_and_is_reported() -> None:
    """Figures of both, as long as it is watched."""
    rig = make_rig(policy="static-small")
    await serve(rig, 50)
    promote(rig, ALWAYS_LARGE)
    order(rig)
    await serve(rig, 50)
    found = told(rig)
    assert (found.problem, found.before.requests, found.after.requests) == ("", 50, 50)
    assert found.after.decisions == 50
    rig.core.watch.take(NOT_WATCHED)
    assert rig.core.watch.told() is None
    assert rig.core.slot.name == "dqn"


@scenario
async def test_faults_send_it_back_at_once() -> None:
    """Without anything to compare with; the fallback answered meanwhile."""
    rig = make_rig(policy="static-small")
    promote(rig, snapshot_bytes(overflows=True))
    order(rig)
    await serve(rig, 5)
    assert told(rig).problem == REASON_FAULTS
    assert rig.core.slot.name == "static-small"
    assert rig.core.accounts.counts.on_time == 5


@scenario
async def test_requests_of_a_canary_and_of_the_policy_before_do_not_count() -> None:
    """Nor do those that began before it decided."""
    rig = make_rig(policy="static-small")
    running = asyncio.create_task(rig.answer(rig.job()))
    await asyncio.sleep(0.001)
    promote(rig, ALWAYS_LARGE)
    order(rig)
    await running
    rig.core.trial.take(tried(ALWAYS_SMALL, share=0.5))
    jobs: list[Job] = []
    for _ in range(40):
        jobs.append(rig.job())
        await rig.answer(jobs[-1])
    drawn = sum(job.arm is Arm.CANARY for job in jobs)
    assert 0 < drawn < 40
    assert told(rig).after.requests == 40 - drawn


@scenario
async def test_the_figures_of_a_policy_that_comes_back_go_on() -> None:
    """What the mesh goes back to is what the next one is compared with, its hour and all."""
    rig = bad_rig()
    await serve(rig, 150)
    promote(rig, ALWAYS_LARGE)
    order(rig)
    await serve(rig, 80)
    assert told(rig).problem
    rig.core.slot.withdraw(3)
    assert rig.core.watch.told() is None
    await serve(rig, 10)
    promote(rig, snapshot_bytes(49.0), activation=4, version="v2")
    order(rig, activation=4)
    await serve(rig, 60)
    found = told(rig)
    assert (found.activation, found.problem) == (4, REASON_MISSES)
    assert found.before.requests == 160


@scenario
async def test_settings_that_are_read_again_begin_nothing_anew() -> None:
    """The same policy made anew is the same policy."""
    rig = make_rig(policy="static-small")
    promote(rig, ALWAYS_LARGE)
    order(rig)
    await serve(rig, 10)
    catalog = rig.core.view.fleet.catalog
    rig.core.slot.configure(
        catalog=catalog, parameters={}, policy="static-small", fallback="greedy", snapshot=b""
    )
    assert told(rig).after.requests == 10


@scenario
async def test_workers_add_up_what_they_saw_and_go_back_together() -> None:
    """Neither saw enough by itself; where one goes back, so does the other at its next look."""
    memory = Memory(worker_count=2, counts_width=1)
    rigs = []
    for number in (1, 2):
        place = Place(
            router_id="r1", epoch=1, siblings=SharedSiblings(memory, number), number=number
        )
        rigs.append(bad_rig(place=place))
    one, other = rigs
    for rig in rigs:
        await serve(rig, 100)
        promote(rig, ALWAYS_LARGE)
        order(rig)
    for _ in range(60):
        await serve(one, 1)
        await serve(other, 1)
    assert {rig.core.slot.name for rig in rigs} == {"static-small"}
    seen = [told(rig) for rig in rigs]
    assert [each.problem for each in seen] == [REASON_MISSES, REASON_MISSES]
    assert "another worker saw it" in [each.detail for each in seen]
    assert seen[0].before.requests == 200
    assert seen[0].after.requests <= 70


@scenario
async def test_requests_kept_to_some_endpoints_make_the_mesh_no_smaller() -> None:
    """The load that a request is counted at is per device of the whole mesh."""
    rig = make_rig(policy="static-small", endpoint_count=8)
    watch, found = rig.core.watch, []
    for endpoints in (None, frozenset({"e0"})):
        await rig.answer(rig.job(endpoints=endpoints))
        watch.look()
        found.append(watch.load_class(40.0))
    assert found[0] == found[1]
