"""A policy on trial: asked beside, drawn for a share, measured, stopped where it breaks a limit."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress

import pytest

from router.dqn.snapshot import Snapshot, save_snapshot, zero_weights
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.router_inference.job import Arm, Job
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trial import Tried
from services.router_inference.policy.trial_counts import (
    REASON_FAULTS,
    REASON_MISSES,
    CanaryCounts,
    ShadowCounts,
    SwitchCounts,
    TrialSeen,
)
from tests.unit.services.router_inference.parts import Behaviour, Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario


def snapshot_bytes(quality: float = 0.0, *, overflows: bool = False) -> bytes:
    """Returns a snapshot of `price` plus `quality` times the quality of a tier."""
    weights = zero_weights(FEATURE_COUNT, 4)
    weights.w3_P[4] = quality
    if overflows:  # every weight is a number; what they make is none
        weights.b1_H[:], weights.w2_GH[:], weights.w3_P[:4] = 3e38, 2.0, 1.0
    return save_snapshot(Snapshot(weights, SCHEMA, tuple(feature.name for feature in FEATURES)))


ALWAYS_LARGE, ALWAYS_SMALL, AS_PRICE = snapshot_bytes(50.0), snapshot_bytes(-50.0), snapshot_bytes()


def tried(snapshot: bytes, *, share: float = 0.0, rollout: int = 1, version: str = "v1") -> Tried:
    """Returns what the trainer wants tried: in shadow, or as a canary with a share."""
    digest = hashlib.sha256(snapshot).digest()
    return Tried(rollout, share > 0.0, share, Promoted("dqn", version, snapshot, digest, 0))


def seen(rig: Rig) -> TrialSeen:
    """Returns what the router reports."""
    found = rig.core.trial.seen()
    assert found is not None
    return found


def shadow(rig: Rig) -> ShadowCounts:
    """Returns what it was asked beside."""
    found = seen(rig).shadow
    assert found is not None
    return found


def canary(rig: Rig) -> CanaryCounts:
    """Returns how requests ended."""
    found = seen(rig).canary
    assert found is not None
    return found


async def serve(rig: Rig, count: int) -> list[Job]:
    """Serves requests one after the other, and lets the background do its work."""
    running = asyncio.create_task(rig.core.trial.run())
    jobs: list[Job] = []
    for _ in range(count):
        jobs.append(rig.job())
        with suppress(DeadlineExceededError):
            await rig.answer(jobs[-1])
    await asyncio.sleep(1.0)
    running.cancel()
    return jobs


@scenario
async def test_a_shadow_is_asked_and_decides_nothing() -> None:
    """What it would have chosen is counted beside what was chosen; requests do not notice."""
    rig = make_rig(policy="static-large")
    rig.core.trial.take(tried(ALWAYS_SMALL))
    await serve(rig, 30)
    counts = shadow(rig)
    assert (counts.decisions, counts.same_tier, counts.faults) == (30, 0, 0)
    assert counts.tiers == {0: 30}
    assert counts.active_tiers == {2: 30}
    assert counts.value_gain < 0.0
    assert {entry.decision.policy for entry in await rig.records()} <= {"static-large", ""}


@scenario
async def test_a_shadow_that_agrees_says_so() -> None:
    """A network that adds nothing to `price` chooses as `price` does."""
    rig = make_rig(policy="price", endpoint_count=2)
    rig.core.trial.take(tried(AS_PRICE))
    await serve(rig, 20)
    counts = shadow(rig)
    assert counts.same_candidate == counts.decisions == 20
    assert counts.value_gain == 0.0


@scenario
async def test_a_shadow_whose_scores_are_no_numbers_is_counted() -> None:
    """Each such decision is a fault; serving goes on."""
    rig = make_rig()
    rig.core.trial.take(broken())
    await serve(rig, 5)
    assert shadow(rig).faults == 5


def broken(share: float = 0.0) -> Tried:
    """Returns a snapshot that a router takes, and whose scores overflow."""
    return tried(snapshot_bytes(overflows=True), share=share)


@scenario
async def test_decisions_before_the_trial_are_not_asked_about() -> None:
    """Nor is any decision twice."""
    rig = make_rig()
    for _ in range(5):
        await rig.answer(rig.job())
    rig.core.trial.take(tried(AS_PRICE))
    await asyncio.sleep(0.1)
    await serve(rig, 3)
    await serve(rig, 2)
    assert shadow(rig).decisions == 5


@scenario
async def test_a_canary_decides_its_share_and_is_compared_with_as_many() -> None:
    """Each draws about its share."""
    rig = make_rig(policy="static-large")
    rig.core.trial.take(tried(ALWAYS_SMALL, share=0.25))
    jobs = await serve(rig, 400)
    drawn = [job for job in jobs if job.arm is Arm.CANARY]
    control = [job for job in jobs if job.arm is Arm.CONTROL]
    assert 70 <= len(drawn) <= 130
    assert 70 <= len(control) <= 130
    assert {(choice_of(job).policy, job.tier) for job in drawn} == {("dqn", "small")}
    others = {choice_of(job).policy for job in jobs if job.arm is not Arm.CANARY}
    assert others == {"static-large"}
    counts = canary(rig)
    assert (counts.canary.requests, counts.control.requests) == (len(drawn), len(control))
    assert (counts.canary.missed, counts.faults) == (0, 0)
    # In calm the small tier earns half as much, and its device time is nearly free.
    assert counts.canary.value_sum / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert counts.values.effect.total < 0.0


@scenario
async def test_a_client_does_not_choose_who_decides() -> None:
    """By an id, for instance, of whose requests it has seen who decided."""
    rig = make_rig(policy="static-large")
    rig.core.trial.take(tried(ALWAYS_SMALL, share=0.25))
    arms = set()
    for _ in range(100):
        job = rig.job(request_id="mine")
        await rig.answer(job)
        arms.add(job.arm)
    assert arms == {Arm.CANARY, Arm.CONTROL, None}


@scenario
async def test_a_canary_that_misses_is_stopped_by_the_router_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Within some dozen of its requests, with the reason; from then on it decides nothing."""
    rig = make_rig(policy="static-small", safety_net=False, learn_slowness=False)
    rig.tier().behaviours["large"] = Behaviour(step_s=0.3)
    rig.core.trial.take(tried(ALWAYS_LARGE, share=0.5))
    with caplog.at_level(logging.WARNING):
        await serve(rig, 150)
    assert seen(rig).problem == REASON_MISSES
    assert canary(rig).canary.missed <= 60
    job = rig.job()
    await rig.answer(job)
    assert (job.arm, job.tier) == (None, "small")
    assert "trial_stopped" in [record.getMessage() for record in caplog.records]


@scenario
async def test_a_canary_that_fails_in_decisions_is_stopped() -> None:
    """The fallback answers meanwhile; nobody waits or fails."""
    rig = make_rig()
    rig.core.trial.take(broken(share=0.5))
    await serve(rig, 30)
    assert seen(rig).problem == REASON_FAULTS
    assert rig.core.accounts.counts.on_time == 30


@scenario
async def test_a_policy_this_router_refuses_is_a_problem_at_once() -> None:
    """With the reason of the refusal."""
    rig = make_rig()
    rig.core.trial.take(tried(b"nonsense", share=0.1))
    assert seen(rig).problem == "SNAPSHOT_MALFORMED"
    assert not rig.core.trial.is_deciding


@scenario
async def test_a_policy_pinned_by_hand_has_no_trial_beside_it() -> None:
    """`use` on this router wins, until the trainer's next word."""
    rig = make_rig()
    rig.core.trial.take(tried(ALWAYS_SMALL, share=0.5))
    rig.core.slot.use("static-medium")
    jobs = await serve(rig, 20)
    assert {job.tier for job in jobs} == {"medium"}
    assert rig.core.trial.seen() is None


@scenario
async def test_a_trial_that_nobody_judges_rests() -> None:
    """It goes on with what it had seen once the trainer is back; another one starts anew."""
    rig = make_rig()
    trial = rig.core.trial
    trial.take(tried(AS_PRICE, share=0.5))
    await serve(rig, 40)
    before = canary(rig).canary.requests
    trial.suspend()
    await serve(rig, 20)
    assert canary(rig).canary.requests == before > 0
    trial.take(tried(AS_PRICE, share=0.5))
    await serve(rig, 40)
    assert canary(rig).canary.requests > before
    trial.take(tried(AS_PRICE, share=0.5, rollout=2))
    assert canary(rig).canary.requests == 0
    trial.take(Tried(0, False, 0.0, Promoted("", "", b"", b"", 0)))
    assert trial.seen() is None


def switched(
    snapshot: bytes, period: int, decides_all: bool, settle_s: float = 0.0, rollout: int = 1
) -> Tried:
    """Returns what the trainer wants tried in a period of a switchback."""
    digest = hashlib.sha256(snapshot).digest()
    policy = Promoted("dqn", "v1", snapshot, digest, 0)
    return Tried(rollout, True, 0.0, policy, period, decides_all, settle_s)


def switch(rig: Rig) -> SwitchCounts:
    """Returns how requests of periods ended."""
    found = seen(rig).switch
    assert found is not None
    return found


@scenario
async def test_in_a_switchback_one_policy_decides_everything_at_a_time() -> None:
    """Each period is counted for itself; what began in the one before counts there."""
    rig = make_rig(policy="static-large")
    trial = rig.core.trial
    trial.take(switched(ALWAYS_SMALL, 1, True))
    jobs = await serve(rig, 30)
    assert {job.tier for job in jobs} == {"small"}
    assert (switch(rig).period, switch(rig).present.requests) == (1, 30)
    running = asyncio.create_task(rig.answer(rig.job()))
    await asyncio.sleep(0.001)
    trial.take(switched(ALWAYS_SMALL, 2, False))
    await running
    jobs = await serve(rig, 20)
    assert {job.tier for job in jobs} == {"large"}
    counts = switch(rig)
    assert (counts.period, counts.present.requests, counts.last.requests) == (2, 20, 31)
    assert counts.present.reward == pytest.approx(20 * 1.0)
    assert counts.last.reward == pytest.approx(31 * 0.5)
    assert rig.core.watch.in_force().requests == 20


@scenario
async def test_a_period_that_was_not_heard_of_has_no_requests() -> None:
    """What began in the one before that ends in the one after it, and belongs to neither."""
    rig = make_rig(policy="static-large")
    rig.core.trial.take(switched(ALWAYS_SMALL, 1, True))
    running = asyncio.create_task(rig.answer(rig.job()))
    await asyncio.sleep(0.001)
    rig.core.trial.take(switched(ALWAYS_SMALL, 3, False))
    await running
    counts = switch(rig)
    assert (counts.period, counts.present.requests, counts.last.requests) == (3, 0, 0)


@scenario
async def test_a_shadow_is_not_asked_about_what_the_dice_chose() -> None:
    """The policy in force had chosen otherwise; what is worth less than that is no gain."""
    rig = make_rig(policy="price", endpoint_count=2, exploration_share=0.05)
    rig.core.trial.take(tried(AS_PRICE))
    explored = sum(choice_of(job).explored for job in await serve(rig, 200))
    counts = shadow(rig)
    assert explored > 0
    assert counts.decisions == counts.same_candidate == 200 - explored
    assert counts.value_gain == 0.0


@scenario
async def test_what_a_period_begins_with_does_not_count() -> None:
    """Neither what the other policy left under way nor its pressure is this one's."""
    rig = make_rig(policy="static-small")
    rig.core.trial.take(switched(ALWAYS_LARGE, 1, True, settle_s=10.0))
    await serve(rig, 10)
    assert switch(rig).present.requests == 0
    await asyncio.sleep(10.0)
    await serve(rig, 10)
    assert switch(rig).present.requests == 10


@scenario
async def test_refused_requests_count_in_a_switchback() -> None:
    """They earn nothing: a policy that fills the devices pays for them."""
    rig = make_rig(policy="static-small")
    rig.core.trial.take(switched(ALWAYS_LARGE, 1, True))
    # What no policy could have answered in time counts against none.
    with pytest.raises(ResourceExhaustedError):
        await rig.answer(rig.job(deadline_s=0.001))
    rig.fill()
    for _ in range(3):
        with pytest.raises(ResourceExhaustedError):
            await rig.answer(rig.job(deadline_s=0.1))
    assert (switch(rig).present.requests, switch(rig).present.missed) == (3, 3)
    assert switch(rig).present.reward == 0.0


@scenario
async def test_a_router_stops_a_switchback_by_itself() -> None:
    """By the last figures of the policy in force, within dozens of requests."""
    rig = make_rig(policy="static-small", safety_net=False, learn_slowness=False)
    rig.tier().behaviours["large"] = Behaviour(step_s=0.3)
    await serve(rig, 200)
    rig.core.trial.take(switched(ALWAYS_LARGE, 1, True))
    running = asyncio.create_task(rig.core.trial.run())
    jobs: list[Job] = []
    for _ in range(100):
        jobs.append(rig.job())
        with suppress(DeadlineExceededError):
            await rig.answer(jobs[-1])
    running.cancel()
    assert seen(rig).problem == REASON_MISSES
    assert 20 <= sum(job.arm is Arm.CANARY for job in jobs) <= 70
    assert jobs[-1].tier == "small"


@scenario
async def test_a_switchback_of_faults_is_stopped_and_begins_anew_with_its_number() -> None:
    """Counts of another rollout are not this one's; without its trainer it rests."""
    rig = make_rig()
    broken = snapshot_bytes(overflows=True)
    rig.core.trial.take(switched(broken, 1, True))
    await serve(rig, 10)
    assert seen(rig).problem == REASON_FAULTS
    rig.core.trial.take(switched(ALWAYS_SMALL, 1, True, rollout=2))
    rig.core.trial.suspend()
    job = rig.job()
    await rig.answer(job)
    assert job.arm is None
    rig.core.trial.take(switched(ALWAYS_SMALL, 2, True, rollout=2))
    await serve(rig, 5)
    assert (switch(rig).present.requests, seen(rig).problem) == (5, "")
