"""A policy on trial: asked beside, drawn for a share, measured, stopped where it breaks a limit."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress

import pytest

from router.dqn.snapshot import Snapshot, save_snapshot, zero_weights
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from services.common.errors import DeadlineExceededError
from services.router_inference.job import Arm, Job
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trial import Tried
from services.router_inference.policy.trial_counts import (
    REASON_FAULTS,
    REASON_MISSES,
    CanaryCounts,
    ShadowCounts,
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
    """By the hash of the request's id: the same id is always on the same side."""
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
    assert rig.core.trial.arm(drawn[0].request_id) is Arm.CANARY
    counts = canary(rig)
    assert (counts.canary.requests, counts.control.requests) == (len(drawn), len(control))
    assert (counts.canary.missed, counts.faults) == (0, 0)
    # In calm the small tier earns half as much, and its device time is nearly free.
    assert counts.canary.value_sum / len(drawn) == pytest.approx(0.5, abs=0.05)
    assert counts.values.effect.total < 0.0


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
