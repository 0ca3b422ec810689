"""How requests end: once each, on time or late, for what they are worth."""

from __future__ import annotations

import asyncio
import random

import pytest

from services.common.tiers.errors import TierInvalidError, TierOverloadedError, TierUnavailableError
from services.router_inference.job import Outcome
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import Behaviour, Rig, make_rig
from tests.unit.services.router_inference.scenario import scenario

GONE = TierUnavailableError("UNAVAILABLE", "connection refused")
HANG = Behaviour(hang=True)


@scenario
async def test_a_soft_deadline_is_served_late() -> None:
    """A soft request is answered after its deadline, for a decayed reward."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(step_s=0.3)
    job = rig.job(task="soft")
    assert (await rig.answer(job)).text == "ab"
    assert job.outcome is Outcome.LATE
    # 0.2 s late with a decay of 0.2 s: e^-1.
    assert rig.core.accounts.counts.delivered_reward_sum == pytest.approx(0.3679, abs=1e-3)


@scenario
async def test_a_first_token_deadline_is_met_by_the_first_token() -> None:
    """A stream whose first token came in time is on time although it ends after its deadline."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(pieces=("a",) * 10, step_s=0.1)
    job = rig.job(task="first", is_stream=True)
    await rig.answer(job)
    assert job.end_s > job.deadline_s
    assert job.outcome is Outcome.ON_TIME


@scenario
async def test_a_cancellation_at_the_deadline_is_a_miss() -> None:
    """The call's own deadline arrives as a cancellation; it is late all the same."""
    rig = make_rig(safety_net=False)
    rig.tier().default = HANG
    job = rig.job()
    task = asyncio.ensure_future(rig.answer(job))
    await asyncio.sleep(0.39)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.outcome is Outcome.LATE


@scenario
async def test_answers_teach_the_length_predictor() -> None:
    """After many long answers the prediction for the task has moved towards them."""
    rig = make_rig()
    rig.tier().default = Behaviour(pieces=("x",) * 16, step_s=0.001)
    before = rig.job().request.output_tokens
    for _ in range(60):
        await rig.answer(rig.job())
    assert rig.job().request.output_tokens > before + 4


async def _storm(rig: Rig) -> None:
    errors = (GONE, TierOverloadedError("QUEUE_FULL", "full"), TierInvalidError("X", "no"))
    behaviours = [Behaviour(step_s=0.005 * k) for k in range(4)]
    behaviours += [Behaviour(error=error, error_after=k % 2) for k, error in enumerate(errors)]
    behaviours.append(HANG)
    rng = random.Random(11)
    tasks = []
    for _ in range(400):
        for index in range(2):
            for tier in ("small", "medium", "large"):
                rig.tier(index).behaviours[tier] = rng.choice(behaviours)
        job = rig.job(
            task=rng.choice(("hard", "soft", "first")),
            deadline_s=rng.choice((0.004, 0.05, 0.3)),
            call_left_s=rng.choice((None, 0.4)),
            is_stream=rng.random() < 0.5,
        )
        task = asyncio.ensure_future(rig.answer(job))
        tasks.append(task)
        if rng.random() < 0.1:
            asyncio.get_running_loop().call_later(rng.random() * 0.1, task.cancel)
        await asyncio.sleep(rng.random() * 0.01)
    await asyncio.sleep(60.0)
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("safety_net", [True, False])
def test_every_offered_request_ends_in_exactly_one_count(safety_net: bool) -> None:
    """A storm of answers, failures and cancellations leaves nothing uncounted, no load behind."""

    async def run() -> None:
        rig = make_rig(endpoint_count=2, policy="random", safety_net=safety_net, soft_late_s=1.0,
                       max_deadline_s=5.0)  # fmt: skip
        await _storm(rig)
        rig.assert_settled()
        counts = rig.core.accounts.counts
        assert counts.offered + counts.invalid == 400
        assert min(counts.on_time, counts.late, counts.cancelled, counts.invalid) > 0
        assert safety_net or counts.failed > 0
        if safety_net:
            assert counts.refused > 0
        records = await rig.records()
        decided = {entry.decision.sequence for entry in records if entry.HasField("decision")}
        ended = [entry.outcome.sequence for entry in records if entry.HasField("outcome")]
        assert decided == set(range(1, len(decided) + 1))
        assert sorted(ended) == sorted(decided)

    run_virtual(run())
