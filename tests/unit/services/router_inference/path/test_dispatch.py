"""The request path on scripted tiers, in virtual time."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.triton.errors import (
    TierInvalidError,
    TierOverloadedError,
    TierUnavailableError,
)
from services.router_inference.path.job import Outcome, StepDown
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import Behaviour, Rig, Sink, make_rig
from tests.unit.services.router_inference.scenario import scenario

GONE = TierUnavailableError("UNAVAILABLE", "connection refused")
HANG = Behaviour(hang=True)


@scenario
async def test_an_answer_in_time_is_on_time() -> None:
    """Text, tier, quality and outcome of a plain request."""
    rig = make_rig()
    job = rig.job()
    sink = await rig.answer(job)
    assert sink.text == "ab"
    assert (job.outcome, job.tier, job.quality) == (Outcome.ON_TIME, "large", 1.0)
    assert job.finish_reason == "stop"
    assert job.step_down is StepDown.NONE
    assert rig.core.accounts.counts.delivered_reward_sum == 1.0
    rig.assert_settled()


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
async def test_a_soft_request_ends_with_the_call() -> None:
    """Not even a soft deadline outlives the call's own."""
    rig = make_rig(safety_net=False)
    rig.tier().default = HANG
    job = rig.job(task="soft", deadline_s=0.2, call_left_s=0.6)
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert job.end_s - job.arrival_s == pytest.approx(0.6)


@scenario
async def test_a_stuck_request_is_rescued() -> None:
    """Just before it is too late the request goes to the best smaller tier that makes it."""
    rig = make_rig()
    rig.tier().behaviours["large"] = HANG
    for number in range(40):  # a queue at the large tier makes the miss predictable
        rig.core.view.load.ledger.dispatch(number, ("large", "e0"), 1.0, 40.0)
    job = rig.job()
    sink = await rig.answer(job)
    for number in range(40):
        rig.core.view.load.ledger.finish(number)
    assert (job.outcome, job.is_rescued, job.step_down) == (
        Outcome.ON_TIME, True, StepDown.RESCUE,
    )  # fmt: skip
    assert sink.text == "ab"
    assert [call["end"] for call in rig.tier().calls] == ["cancelled", "done"]
    assert job.tier != "large"
    outcome = (await rig.records())[-1].outcome
    assert outcome.rescued
    assert (outcome.reward, outcome.delivered_reward) == (0.0, job.quality)
    rig.assert_settled()


@scenario
async def test_without_the_safety_net_nothing_is_rescued() -> None:
    """Switched off, the same request misses."""
    rig = make_rig(safety_net=False)
    rig.tier().behaviours["large"] = HANG
    with pytest.raises(DeadlineExceededError):
        await rig.answer(rig.job())
    assert len(rig.tier().calls) == 1


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
async def test_a_pinned_request_is_never_rescued() -> None:
    """A client that pinned a tier gets that tier or nothing."""
    rig = make_rig()
    rig.tier().behaviours["large"] = HANG
    job = rig.job(tier="large")
    with pytest.raises(DeadlineExceededError):
        await rig.answer(job)
    assert [call["model"] for call in rig.tier().calls] == ["large"]


@scenario
async def test_a_failed_request_goes_to_another_endpoint_of_its_tier() -> None:
    """The retry keeps the tier if another endpoint has it."""
    rig = make_rig(endpoint_count=2)
    for index in range(2):
        rig.tier(index).behaviours["large"] = Behaviour(error=GONE)
    first = rig.job()

    # Whichever endpoint is chosen first fails; the other one answers.
    async def heal_the_other() -> None:
        while not any(rig.tier(i).calls for i in range(2)):
            await asyncio.sleep(0)
        for index in range(2):
            if not rig.tier(index).calls:
                rig.tier(index).behaviours.clear()

    healer = asyncio.ensure_future(heal_the_other())
    for index in range(2):
        rig.tier(index).behaviours["large"] = Behaviour(
            pieces=("x",), step_s=0.001, error=GONE, error_after=1
        )
    sink = await rig.answer(first)
    await healer
    assert (first.outcome, first.tier, first.retry_count) == (Outcome.ON_TIME, "large", 1)
    assert sink.text == "ab"  # nothing of the broken answer is left
    assert sink.restarts == 1
    rig.assert_settled()


@scenario
async def test_a_failed_request_goes_down_where_its_tier_has_no_other_endpoint() -> None:
    """One endpoint only: the retry takes the tier below, and says why."""
    rig = make_rig()
    rig.tier().behaviours["large"] = Behaviour(error=GONE)
    job = rig.job()
    await rig.answer(job)
    assert (job.tier, job.step_down, job.retry_count) == ("medium", StepDown.RETRY, 1)


@scenario
async def test_retries_are_budgeted() -> None:
    """With the budget gone a failure is a failure at once."""
    rig = make_rig(retry_share=0.0, retry_burst=1, eject_after_failures=1000)
    rig.tier().default = Behaviour(error=GONE)
    for expected_calls in (2, 1, 1):
        rig.tier().calls.clear()
        with pytest.raises(UnavailableError) as caught:
            await rig.answer(rig.job())
        assert caught.value.reason == "ENDPOINT_FAILED"
        assert len(rig.tier().calls) == expected_calls
    assert rig.core.accounts.counts.failed == 3
    rig.assert_settled()


@scenario
async def test_a_stream_that_has_begun_is_not_retried() -> None:
    """What the client has seen cannot be taken back."""
    rig = make_rig()
    rig.tier().default = Behaviour(error=GONE, error_after=1)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job(is_stream=True))
    assert len(rig.tier().calls) == 1


@scenario
async def test_a_request_the_tier_refuses_is_not_retried() -> None:
    """Sending bad input elsewhere would not help; it is the client's to mend."""
    rig = make_rig()
    rig.tier().default = Behaviour(error=TierInvalidError("INVALID_REQUEST", "too long"))
    with pytest.raises(InvalidArgumentError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "TIER_REFUSED_REQUEST"
    assert len(rig.tier().calls) == 1
    assert rig.core.accounts.counts.failed == 1


@scenario
async def test_a_full_queue_is_no_fault_of_the_endpoint() -> None:
    """Overload is answered as such and ejects nobody."""
    rig = make_rig(max_retries=0, eject_after_failures=1)
    rig.tier().default = Behaviour(error=TierOverloadedError("QUEUE_FULL", "queue full"))
    with pytest.raises(UnavailableError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "TIER_OVERLOADED"
    rig.tier().default = Behaviour()
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
async def test_a_hopeless_soft_request_is_served() -> None:
    """Soft deadlines are never refused."""
    rig = make_rig()
    job = rig.job(task="soft", deadline_s=0.005)
    await rig.answer(job)
    assert job.outcome is Outcome.LATE


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
async def test_a_full_router_refuses() -> None:
    """Memory is bounded: one request too many is refused at once."""
    rig = make_rig(max_in_flight=2)
    rig.tier().default = HANG
    tasks = [asyncio.ensure_future(rig.answer(rig.job())) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job())
    assert caught.value.reason == "ROUTER_FULL"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    rig.assert_settled()


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
async def test_step_downs_say_why() -> None:
    """Chosen by the policy, pinned by the client, or forced by what is there."""
    rig = make_rig(policy="static-small")
    chosen, pinned = rig.job(), rig.job(tier="medium")
    await rig.answer(chosen)
    await rig.answer(pinned)
    assert (chosen.step_down, pinned.step_down) == (StepDown.POLICY, StepDown.PINNED)
    rig = make_rig(eject_after_failures=1, max_retries=0)
    rig.tier().behaviours["large"] = Behaviour(error=GONE)
    with pytest.raises(UnavailableError):
        await rig.answer(rig.job())
    forced = rig.job()
    await rig.answer(forced)
    assert (forced.tier, forced.step_down) == ("medium", StepDown.UNAVAILABLE)


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
    rng = __import__("random").Random(11)
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
        assert counts.offered == 400
        assert min(counts.on_time, counts.late, counts.cancelled, counts.failed) > 0
        if safety_net:
            assert counts.refused > 0
        records = await rig.records()
        decided = {entry.decision.sequence for entry in records if entry.HasField("decision")}
        ended = [entry.outcome.sequence for entry in records if entry.HasField("outcome")]
        assert decided == set(range(1, len(decided) + 1))
        assert sorted(ended) == sorted(decided)

    run_virtual(run())


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
