"""How requests end: once each, on time or late, for what they are worth."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

from router.types import SloKind
from services.common.tiers.errors import TierInvalidError, TierOverloadedError, TierUnavailableError
from services.router_inference.job import Job, Outcome
from services.router_inference.records.accounts import SMOOTH
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


def _paced(rig: Rig, interval_s: float, **fields: Any) -> Job:
    return rig.job(
        is_stream=True, slo_kind=SloKind.PER_TOKEN, token_interval_s=interval_s, **fields
    )


@scenario
async def test_each_token_has_its_own_due_time() -> None:
    """An answer far beyond its first token's deadline is in time if it comes as fast as is read."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(pieces=("a",) * 10, step_s=0.1)
    job = _paced(rig, 0.1)
    await rig.answer(job)
    assert job.end_s - job.arrival_s > 2 * (job.deadline_s - job.arrival_s)
    assert job.outcome is Outcome.ON_TIME
    # Each token came as long before its due time as the first: by 0.3 s.
    assert job.deadline_s - job.deadline_event_s == pytest.approx(0.3)


@scenario
async def test_a_stream_that_falls_behind_is_late() -> None:
    """The answer goes on to its end, and is as late as its latest token, here the last."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(pieces=("a",) * 10, step_s=0.1)
    job = _paced(rig, 0.06)
    assert (await rig.answer(job)).text == "a" * 10
    assert job.outcome is Outcome.LATE
    assert job.deadline_event_s - job.deadline_s == pytest.approx(1.0 - 0.4 - 9 * 0.06)
    record = (await rig.records())[-1].outcome
    assert (record.status, record.reward, record.output_token_count) == (2, 0.0, 10)
    # Worth nothing where the deadline is hard, and not nothing to its reader.
    counts_KW = rig.core.accounts.by_task([job.task.name], [])
    assert counts_KW[0, SMOOTH] == pytest.approx(math.exp(-(1.0 - 0.4 - 9 * 0.06) / 0.2))


@scenario
async def test_a_token_that_stalls_in_the_middle_counts() -> None:
    """What comes fast after a pause makes up for none of it."""
    rig = make_rig(safety_net=False)
    job = _paced(rig, 0.05, task="soft")
    at_s = (0.1, 0.1, 0.9, 0.9, 0.9, 0.9)
    rig.tier().default = Behaviour(pieces=("a",) * len(at_s), at_s=at_s)
    await rig.answer(job)
    assert job.outcome is Outcome.LATE
    # The third token was due 0.1 s after the first one's deadline.
    assert job.deadline_event_s - job.deadline_s == pytest.approx(0.9 - (0.4 + 2 * 0.05))
    assert (await rig.records())[-1].outcome.reward == pytest.approx(math.exp(-0.4 / 0.2))


@scenario
async def test_tokens_of_one_message_came_with_it() -> None:
    """The first token of a message is its latest: the others are due after it."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(pieces=("aaaaa",) * 3, step_s=0.2, tokens_per_piece=5)
    job = _paced(rig, 0.05, max_output_tokens=15)
    await rig.answer(job)
    # Tokens 1, 6 and 11 came at 0.2, 0.4 and 0.6 s, and were due at 0.4, 0.65 and 0.9 s.
    assert job.output_tokens == 15
    assert job.deadline_s - job.deadline_event_s == pytest.approx(0.2)


@pytest.mark.parametrize(("step_s", "outcome"), [(0.3, Outcome.ON_TIME), (0.5, Outcome.LATE)])
@pytest.mark.parametrize("pieces", [("a",), ()])
@scenario
async def test_answers_of_one_token_or_none_are_due_at_the_deadline(
    pieces: tuple[str, ...], step_s: float, outcome: Outcome
) -> None:
    """Without a token, the end is what comes."""
    rig = make_rig(safety_net=False)
    end_after_s = 0.0 if pieces else step_s
    rig.tier().default = Behaviour(pieces=pieces, step_s=step_s, end_after_s=end_after_s)
    job = _paced(rig, 1.0)
    await rig.answer(job)
    assert (job.outcome, job.output_tokens) == (outcome, len(pieces))
    assert job.deadline_event_s - job.arrival_s == pytest.approx(step_s)


@scenario
async def test_low_limits_do_not_shorten_what_is_predicted_without_them() -> None:
    """An answer cut off by its own limit says how long answers are at least."""
    rig = make_rig()
    predicted = rig.job(max_output_tokens=512).request.output_tokens
    for _ in range(50):
        await rig.answer(rig.job(max_output_tokens=1))
    assert rig.job(max_output_tokens=512).request.output_tokens == predicted > 2.0
    for _ in range(50):
        await rig.answer(rig.job(max_output_tokens=512))  # of two tokens
    assert rig.job(max_output_tokens=512).request.output_tokens < predicted


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
