"""One dispatch: what is relayed, when it is given up, and what is learned from its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.profile import LatencyProfile, TierProfile
from services.common.errors import (
    DeadlineExceededError,
    UnavailableError,
)
from services.common.tiers.errors import TierOverloadedError, TierUnavailableError
from services.router_inference.job import Job, Outcome
from services.router_inference.path.attempt import CUTOFF_TOLERANCE_S
from services.router_inference.view.breaker import SILENT, BreakerState
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import Behaviour, Rig, Sink, make_rig
from tests.unit.services.router_inference.scenario import scenario

GONE = TierUnavailableError("UNAVAILABLE", "connection refused")
HANG = Behaviour(hang=True)


@scenario
async def test_the_remaining_time_travels_to_triton() -> None:
    """The Triton call gets what is left of the deadline, not the whole of it."""
    rig = make_rig()
    job = rig.job(deadline_s=0.25)
    await asyncio.sleep(0.05)
    await rig.answer(job)
    assert rig.tier().calls[0]["timeout_s"] == pytest.approx(0.2)


@scenario
async def test_a_hard_deadline_leaves_the_end_to_the_tier() -> None:
    """At the deadline the request is late; its call is not cancelled, the tier ends it."""
    rig = make_rig(safety_net=False)
    rig.tier().default = HANG
    job = rig.job()
    with pytest.raises(DeadlineExceededError) as caught:
        await rig.answer(job)
    assert caught.value.metadata["tier"] == "large"
    assert job.end_s - job.arrival_s == pytest.approx(0.4)
    await asyncio.sleep(0.001)
    assert rig.tier().calls[0]["end"] == "timeout"
    assert job.outcome is Outcome.LATE
    rig.assert_settled()


@scenario
async def test_an_answer_after_the_deadline_changes_nothing() -> None:
    """What a tier still sends after the deadline reaches neither the client nor the ledger."""
    rig = make_rig(safety_net=False)
    rig.tier().default = Behaviour(pieces=("a", "b", "c"), step_s=0.25)
    job = rig.job()
    sink = Sink()
    with pytest.raises(DeadlineExceededError):
        await rig.core.dispatcher.answer(job, sink)
    await asyncio.sleep(1.0)
    assert rig.tier().calls[0]["end"] == "done"
    assert (sink.text, job.output_tokens, job.finish_reason) == ("a", 1, "")
    rig.assert_settled()


@scenario
async def test_a_call_that_ends_at_the_deadline_is_not_cancelled() -> None:
    """A client whose own deadline is the request's leaves the end to the tier as well."""
    rig = make_rig(safety_net=False)
    rig.tier().default = HANG
    task = asyncio.create_task(rig.answer(rig.job()))
    await asyncio.sleep(0.39)
    task.cancel()
    await asyncio.sleep(0.02)
    assert rig.tier().calls[0]["end"] == "timeout"


@scenario
async def test_a_soft_request_ends_with_the_call() -> None:
    """Not even a soft deadline outlives the call's own."""
    rig = make_rig(safety_net=False)
    rig.tier().default = HANG
    job = rig.job(task="soft", deadline_s=0.2, call_left_s=0.6)
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert job.end_s - job.arrival_s == pytest.approx(0.6)


@scenario
async def test_a_cancelled_client_stops_the_work() -> None:
    """The tier's call is cancelled; the request counts as cancelled, not as late."""
    rig = make_rig()
    rig.tier().default = HANG
    job = rig.job()
    task = asyncio.ensure_future(rig.answer(job))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job.outcome is Outcome.CANCELLED
    assert rig.tier().calls[0]["end"] == "cancelled"
    record = (await rig.records())[-1].outcome
    assert (record.status, record.reward) == (4, 0.0)
    rig.assert_settled()


@scenario
async def test_deadlines_too_short_for_a_tier_close_nobody() -> None:
    """Misses of requests that gave the tier less time than it needs are their own fault."""
    rig = make_rig(safety_net=False, silent_eject_s=0.1, eject_after_failures=1)
    for _ in range(30):
        with pytest.raises(DeadlineExceededError):
            await rig.answer(rig.job(deadline_s=0.01, max_output_tokens=1))
        await asyncio.sleep(0.02)
    await rig.answer(rig.job())


@scenario
async def test_failing_endpoints_are_ejected_probed_and_brought_back() -> None:
    """Ejected after three failures, refused meanwhile, probed after the pause, then used."""
    rig = make_rig(tiers=("small",), policy="static-small", eject_s=1.0, ramp_s=2.0)
    rig.tier().default = Behaviour(error=GONE)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            await rig.answer(rig.job())
    rig.tier().calls.clear()
    with pytest.raises(UnavailableError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "NO_USABLE_ENDPOINT"
    assert caught.value.retry_after_s == pytest.approx(1.0)
    assert not rig.tier().calls
    await asyncio.sleep(1.01)
    rig.tier().default = HANG
    # One probe only: while it runs nothing else goes there.
    probe = asyncio.ensure_future(rig.answer(rig.job(deadline_s=0.1)))
    await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job())
    with pytest.raises(DeadlineExceededError):
        await probe
    rig.tier().default = Behaviour()
    await asyncio.sleep(2.0)  # a failed probe doubles the pause
    job = rig.job()
    await rig.answer(job)
    assert job.outcome is Outcome.ON_TIME
    fleet = rig.core.view.current_fleet(rig.clock.monotonic_s())
    assert 0.0 < fleet.arrays.availability_C[0] < 1.0
    await asyncio.sleep(2.0)
    fleet = rig.core.view.current_fleet(rig.clock.monotonic_s())
    assert fleet.arrays.availability_C[0] == 1.0
    rig.assert_settled()


@pytest.mark.parametrize(
    ("behaviour", "task", "cancel_s", "teaches"),
    [
        (Behaviour(step_s=0.01), "hard", None, False),  # sooner than predicted
        (Behaviour(step_s=0.15), "hard", None, True),
        (Behaviour(step_s=0.15), "first", None, False),  # predictions are of the first token
        (HANG, "hard", None, True),  # cut off by the deadline
        (HANG, "hard", 0.395, True),  # the call's own deadline came first
        (HANG, "hard", 0.2, False),  # a client that left
        (Behaviour(error=GONE), "hard", None, False),
    ],
)
def test_slow_answers_teach_the_slowdown(
    behaviour: Behaviour, task: str, cancel_s: float | None, teaches: bool
) -> None:
    """What was served where it was first sent, or cut off by its deadline, and nothing else."""

    async def run() -> None:
        rig = make_rig(safety_net=False, max_retries=0)
        rig.tier().default = behaviour
        answers = [
            asyncio.create_task(rig.answer(rig.job(task=task, is_stream=task == "first")))
            for _ in range(30)
        ]
        if cancel_s is not None:
            await asyncio.sleep(cancel_s)
            for answer in answers:
                answer.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        found = rig.core.view.traffic.latency_slowdown(rig.clock.monotonic_s())
        assert (found > 1.2) is teaches
        assert found == 1.0 or teaches

    run_virtual(run())


@scenario
async def test_answers_teach_how_far_the_profile_is_off() -> None:
    """By tier and range, for the length that each answer had; the status tells it."""
    rig = make_rig(safety_net=False)
    # The profile says 0.01 s per token: eight were expected, twelve come, each in twice the time.
    rig.tier().behaviours["large"] = Behaviour(pieces=("a",) * 12, step_s=0.02)
    for _ in range(25):
        await rig.answer(rig.job())
    (status,) = rig.core.status.read().profiles
    whole, idle = status.errors
    assert (whole.tier, whole.range, idle.tier) == ("large", "", "large")
    assert idle.range == "idle device, prompts of 1 to 64 tokens"
    assert whole.error == idle.error == pytest.approx(-0.5, abs=0.02)


@scenario
async def test_no_rescue_after_the_first_byte() -> None:
    """A stream that has begun stays where it is."""
    rig = make_rig()
    rig.tier().behaviours["large"] = Behaviour(pieces=("a",) * 16, step_s=0.1)
    job = rig.job(is_stream=True)
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert job.output_tokens == 3
    assert not job.is_rescued


@scenario
async def test_a_tier_that_ends_a_request_at_its_deadline_is_late_not_full() -> None:
    """The tier's own timer may be the first: nobody retries, and the miss teaches."""
    rig = make_rig(safety_net=True, max_retries=2)
    error = TierOverloadedError("QUEUE_TIMEOUT", "Request timeout expired")
    rig.tier().default = Behaviour(step_s=0.395, error=error, error_after=1)
    job = rig.job(tier="large")
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert [attempt.result for attempt in job.attempts] == ["deadline"]
    assert (job.outcome, job.retry_count) == (Outcome.LATE, 0)


@scenario
async def test_a_rescue_stops_the_work_it_leaves_however_late() -> None:
    """Less than the tolerance before the deadline, too: the tier is not left to work for nobody."""
    # A quick small tier on a device of its own: the rescue can wait almost until the deadline.
    costs = {"small": TierProfile(0.0001, 0.0, 0.0), "large": TierProfile(0.01, 0.0, 0.0)}
    places = (("e0", "127.0.0.1:9000", "large"), ("e1", "127.0.0.1:9001", "small"))
    endpoints = [{"name": n, "address": a, "tiers": (tier,)} for n, a, tier in places]
    rig = make_rig(
        endpoint_count=2,
        profile=LatencyProfile("quick", "assumed", costs),
        mesh={"endpoints": endpoints},
    )
    rig.tier(0).default = HANG
    rig.tier(1).default = Behaviour(step_s=0.0001)
    for number in range(40):
        rig.core.view.load.ledger.dispatch(number, ("large", "e0"), 1.0, 40.0)
    job = rig.job()
    await rig.answer(job)
    assert job.is_rescued
    assert job.attempts[0].end_s > job.deadline_s - CUTOFF_TOLERANCE_S
    await asyncio.sleep(0.0)
    assert rig.tier().calls[0]["end"] == "cancelled"


@scenario
async def test_a_loop_that_stood_still_blames_nobody_for_silence() -> None:
    """What came meanwhile lies unread; where the loop is in time, silence is the endpoint's."""
    rig = make_rig(safety_net=False, silent_eject_s=0.1, eject_after_failures=1)
    rig.tier().default = HANG
    for lag_s, is_open in ((3.0, True), (0.05, False)):
        rig.core.lag.lag_s = lag_s
        with pytest.raises(DeadlineExceededError):
            await rig.answer(rig.job())
        (large,) = (each for each in rig.core.view.fleet.targets if each.tier == "large")
        assert large.breaker.settled is is_open


@scenario
async def test_a_call_that_ends_by_its_own_limit_met_silence_too() -> None:
    """Its limit is the request's deadline, and comes a little sooner; one that leaves met none."""
    for waited_s, is_open in ((0.3, True), (0.395, False)):
        rig = make_rig(safety_net=False, silent_eject_s=0.1, eject_after_failures=1)
        rig.tier().default = HANG
        task = asyncio.ensure_future(rig.answer(rig.job()))
        await asyncio.sleep(waited_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (large,) = (each for each in rig.core.view.fleet.targets if each.tier == "large")
        assert large.breaker.settled is is_open


@scenario
async def test_a_caller_that_waited_all_its_time_was_kept_waiting() -> None:
    """Its own clock ends the call before ours, by what the way here has rounded up."""
    for waited_s, outcome in ((12.34, Outcome.LATE), (11.9, Outcome.CANCELLED)):
        rig = make_rig(safety_net=False, soft_late_s=60.0)
        rig.tier().default = HANG
        job = rig.job(task="soft", call_left_s=12.4)
        task = asyncio.ensure_future(rig.answer(job))
        await asyncio.sleep(waited_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert job.outcome is outcome
        assert job.attempts[0].result == ("deadline" if outcome is Outcome.LATE else "cancelled")


@scenario
async def test_a_tier_that_hangs_is_ejected_though_its_requests_are_rescued() -> None:
    """Silence counts, whether a request runs out of time in it or is saved just before."""
    rig = make_rig()
    rig.tier().behaviours["large"] = HANG
    jobs: list[Job] = []
    for _ in range(20):
        jobs.append(rig.job())
        await rig.answer(jobs[-1])
    rescued = [job.is_rescued for job in jobs]
    assert all(rescued[:8])
    assert sum(rescued[12:]) <= 2  # probes
    (large,) = (each for each in rig.core.view.fleet.targets if each.tier == "large")
    assert large.breaker.last_reason == "SILENT"
    rig.assert_settled()


def _hanging_stream(rig: Rig) -> tuple[Job, asyncio.Future[Sink]]:
    """Begins a stream with a deadline for its first token, while every endpoint hangs."""
    for tier in rig.pool.tiers.values():
        tier.default = HANG
    job = rig.job(task="first", is_stream=True)
    return job, asyncio.ensure_future(rig.answer(job))


@scenario
async def test_a_stream_does_not_wait_for_ever_where_a_tier_hangs() -> None:
    """Nothing comes beyond its deadline: the tier is ejected, and asked for at another endpoint."""
    rig = make_rig(endpoint_count=2, tiers=("small",), policy="static-small")
    job, answering = _hanging_stream(rig)
    await asyncio.sleep(0.01)
    chosen = job.target
    assert chosen is not None
    for tier in rig.pool.tiers.values():
        if tier.address != chosen.address:
            tier.default = Behaviour()
    sink = await answering
    assert sink.text == "ab"
    assert 3.0 < job.end_s - job.arrival_s < 7.0
    assert [attempt.result for attempt in job.attempts] == ["SILENT", "ok"]
    assert (job.outcome, job.retry_count) == (Outcome.LATE, 1)
    assert chosen.breaker.is_silent
    assert rig.pool.tiers[chosen.address].calls[0]["end"] == "cancelled"
    rig.assert_settled()


@scenario
async def test_a_stream_that_no_endpoint_answers_ends_with_a_reason() -> None:
    """One that hangs is as one that is gone, long before the longest deadline."""
    rig = make_rig(tiers=("small",), policy="static-small")
    job, answering = _hanging_stream(rig)
    with pytest.raises(UnavailableError) as caught:
        await answering
    assert caught.value.metadata["cause"] == "SILENT"
    assert job.end_s - job.arrival_s < 7.0
    rig.assert_settled()


@scenario
async def test_a_probe_that_is_given_up_for_its_silence_ends() -> None:
    """Else its candidate would wait for that end for ever, and never be tried again."""
    rig = make_rig(
        endpoint_count=2, tiers=("small",), policy="static-small", eject_after_failures=1
    )
    first, hanging = rig.core.view.fleet.targets
    rig.tier(1).default = HANG
    hanging.breaker.on_failure(rig.clock.monotonic_s(), SILENT)
    for _ in range(2):
        await asyncio.sleep(9.0)
        job = rig.job(task="first", is_stream=True, endpoints=frozenset({hanging.endpoint}))
        answering = asyncio.ensure_future(rig.answer(job))
        await asyncio.sleep(0.01)
        assert (job.target, hanging.breaker.state) == (hanging, BreakerState.PROBING)
        await answering
        assert (job.target, hanging.breaker.state) == (first, BreakerState.EJECTED)
    rig.assert_settled()


@scenario
async def test_a_late_token_is_waited_for_where_others_are_answered() -> None:
    """What is late is not silent: its client reads along, whenever it comes."""
    rig = make_rig(tiers=("small",), policy="static-small")
    rig.tier().default = Behaviour(at_s=(8.0, 8.1))
    job = rig.job(task="first", is_stream=True)
    answering = asyncio.ensure_future(rig.answer(job))
    await asyncio.sleep(0.01)
    rig.tier().default = Behaviour()
    for _ in range(16):
        await rig.answer(rig.job(task="first", is_stream=True))
        await asyncio.sleep(0.5)
    assert (await answering).text == "ab"
    assert (job.outcome, len(job.attempts)) == (Outcome.LATE, 1)
    rig.assert_settled()


@scenario
async def test_a_loop_that_stood_still_gives_up_no_stream() -> None:
    """Its looks are late, and what came meanwhile lies unread: it looks again before it blames."""
    rig = make_rig(
        tiers=("small",), policy="static-small", silent_eject_s=0.1, eject_after_failures=1
    )
    rig.tier().default = Behaviour(at_s=(6.0, 6.1))
    answering = asyncio.ensure_future(rig.answer(rig.job(task="first", is_stream=True)))
    await asyncio.sleep(0.01)
    loop: Any = asyncio.get_running_loop()
    loop.now_s += 5.0
    assert (await answering).text == "ab"
    rig.assert_settled()


@scenario
async def test_a_client_that_leaves_beyond_its_deadline_met_silence() -> None:
    """A soft request is worked on beyond it; who gives up before the end counts all the same."""
    for waited_s, is_open in ((0.3, True), (0.5, False)):
        rig = make_rig(safety_net=False, silent_eject_s=0.1, eject_after_failures=1)
        rig.tier().default = HANG
        task = asyncio.ensure_future(rig.answer(rig.job(task="soft")))
        await asyncio.sleep(waited_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (large,) = (each for each in rig.core.view.fleet.targets if each.tier == "large")
        assert large.breaker.settled is is_open
