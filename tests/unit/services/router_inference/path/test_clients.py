"""What one client may take, and who is served when there is too little for all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from router.types import Priority
from services.common.errors import DomainError, ResourceExhaustedError
from services.router_inference.job import Outcome
from services.router_inference.path.leases import Report
from tests.unit.services.router_inference.overload import on_time_share, overload
from tests.unit.services.router_inference.parts import (
    Behaviour,
    Rig,
    choice_of,
    make_rig,
)
from tests.unit.services.router_inference.scenario import scenario

LIGHT, FLOOD = "light", "flood"
RATES = {LIGHT: 10.0, FLOOD: 200.0}


def limited(**limits: Any) -> Rig:
    """Returns a router whose client `one` has limits."""
    return make_rig(clients=[{"name": "one", **limits}])


async def started(rig: Rig, client: str, **fields: Any) -> asyncio.Task[Any]:
    """Starts a request and lets it be dispatched."""
    task = asyncio.ensure_future(rig.answer(rig.job(client=client, **fields)))
    await asyncio.sleep(0.0)
    return task


@scenario
async def test_requests_under_way_are_bounded_per_client() -> None:
    """The one beyond is refused with a time to retry; another client is not touched."""
    rig = limited(max_in_flight=2)
    running = [await started(rig, "one") for _ in range(2)]
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(client="one"))
    assert caught.value.reason == "CLIENT_IN_FLIGHT"
    assert caught.value.retry_after_s is not None
    await rig.answer(rig.job(client="other"))
    await asyncio.gather(*running)
    await rig.answer(rig.job(client="one"))
    rig.assert_settled()


@scenario
async def test_a_client_is_held_to_its_highest_priority() -> None:
    """It gets that class and its answer; what it asked for stays known, and is counted."""
    rig = limited(highest_priority="normal")
    decided = {}
    for client, asked in (("one", "HIGH"), ("one", "LOW"), ("other", "HIGH")):
        job = rig.job(client=client, priority=Priority[asked])
        await rig.answer(job)
        standing = choice_of(job).standing
        assert standing.asked is Priority[asked]
        decided[client, asked] = standing.priority.name
    assert decided == {("one", "HIGH"): "NORMAL", ("one", "LOW"): "LOW", ("other", "HIGH"): "HIGH"}
    [metric] = rig.core.accounts.metrics.priority_lowered.collect()
    counted = {s.labels["client"]: s.value for s in metric.samples if s.name.endswith("_total")}
    assert counted == {"one": 1.0}


@scenario
async def test_a_ceiling_holds_for_decisions_alone_too() -> None:
    """Of those whose answer a client or a gateway fetches by itself."""
    rig = limited(highest_priority="low")
    job = rig.job(client="one", prompt=None, prompt_tokens=3, priority=Priority.HIGH)
    assert rig.core.leases.route(job).choice.standing.priority is Priority.LOW
    gateway = rig.job(client="one", prompt=None, prompt_tokens=3, by_gateway=True)
    assert rig.core.leases.take_in(gateway, 1.0).standing.priority is Priority.LOW


@scenario
async def test_a_rate_allows_a_burst_of_a_second_and_no_more() -> None:
    """Over ten seconds a client that always asks gets its rate."""
    rig = limited(rate_rps=10.0)
    answered, refused = 0, set()
    for _ in range(1_000):
        try:
            await rig.answer(rig.job(client="one", max_output_tokens=1))
            answered += 1
        except ResourceExhaustedError as error:
            refused.add(error.reason)
            await asyncio.sleep(0.005)
    seconds = rig.clock.monotonic_s() - 1_000.0
    assert refused == {"CLIENT_RATE"}
    assert answered == pytest.approx(10.0 * (seconds + 1.0), abs=2.0)


@scenario
async def test_what_a_client_may_not_have_anyway_is_no_traffic() -> None:
    """One that is refused all day would have the requests of all others take smaller tiers."""
    rig = limited(rate_rps=1.0)
    traffic, now_s = rig.core.view.traffic, rig.clock.monotonic_s()
    running = await started(rig, "one")
    before = traffic.own_rate_rps(now_s), traffic.mean_prompt_tokens
    for _ in range(100):
        with pytest.raises(ResourceExhaustedError, match="client rate"):
            await rig.answer(rig.job(client="one", prompt="long" * 100))
    assert (traffic.own_rate_rps(now_s), traffic.mean_prompt_tokens) == before
    other = await started(rig, "other")
    assert traffic.own_rate_rps(now_s) > before[0]
    await asyncio.gather(running, other)
    rig.assert_settled()


@scenario
async def test_a_rate_below_one_a_second_is_had_in_full() -> None:
    """One request at a time, each as soon as the rate says; the refusal says when."""
    rig = limited(rate_rps=0.25)
    answered_s: list[float] = []
    while len(answered_s) < 4:
        asked_s = rig.clock.monotonic_s()
        try:
            await rig.answer(rig.job(client="one"))
            answered_s.append(asked_s)
        except ResourceExhaustedError as error:
            await asyncio.sleep(error.retry_after_s or 0.0)
    assert [each - answered_s[0] for each in answered_s] == pytest.approx([0.0, 4.0, 8.0, 12.0])


@scenario
async def test_a_claim_gives_no_tokens_back() -> None:
    """What a client routes and reports as an empty answer costs what it might have taken."""
    rig = limited(tokens_per_s=100.0)
    leases = rig.core.leases
    routed = leases.route(rig.job(client="one", prompt=None, max_output_tokens=150))
    leases.close(routed.ticket, Report(Outcome.ON_TIME, None, 0, None))
    with pytest.raises(ResourceExhaustedError) as caught:
        leases.route(rig.job(client="one", prompt=None, max_output_tokens=150))
    assert caught.value.reason == "CLIENT_TOKENS"


@scenario
async def test_tokens_are_charged_as_asked_and_given_back_unused() -> None:
    """A client that asks for much and takes little pays for what it took."""
    rig = limited(tokens_per_s=100.0)
    for _ in range(3):  # 2 of 90 tokens are generated each time
        await rig.answer(rig.job(client="one", max_output_tokens=90))
    running = [await started(rig, "one", max_output_tokens=120) for _ in range(1)]
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(client="one", max_output_tokens=120))
    assert caught.value.reason == "CLIENT_TOKENS"
    await asyncio.gather(*running)
    rig.assert_settled()


@scenario
async def test_what_goes_nowhere_costs_no_tokens() -> None:
    """The prompt of a request that is refused, or has no endpoint, was computed by nobody."""
    rig = limited(tokens_per_s=100.0)
    for deadline_s, floor in ((0.005, 0.0), (0.4, 1.0)):
        for tier in rig.core.view.fleet.targets:
            while floor and tier.tier == "large" and tier.breaker.settled:
                tier.breaker.on_failure(rig.clock.monotonic_s(), "UNAVAILABLE")
        for _ in range(3):
            job = rig.job(
                client="one", prompt="x" * 4_000, deadline_s=deadline_s, quality_floor=floor
            )
            with pytest.raises(DomainError):
                await rig.answer(job)
            assert job.reason in ("DEADLINE_NOT_REACHABLE", "NO_USABLE_ENDPOINT")
    await rig.answer(rig.job(client="one", max_output_tokens=90))


@scenario
async def test_names_in_metrics_come_from_the_settings() -> None:
    """A client that nobody configured has no name there, whatever it calls itself."""
    rig = limited(max_in_flight=1)
    for client in ("one", "one", "two", "three"):
        await rig.answer(rig.job(client=client))
    with pytest.raises(DomainError):
        await asyncio.gather(*(rig.answer(rig.job(client="one")) for _ in range(2)))
    counted = {
        (sample.labels["client"], sample.labels["outcome"]): sample.value
        for family in rig.app.registry.collect()
        for sample in family.samples
        if sample.name == "tiercel_client_requests_total"
    }
    assert counted == {("one", "on_time"): 2.0, ("other", "on_time"): 2.0, ("one", "refused"): 1.0}


@scenario
async def test_a_forgotten_client_costs_no_memory() -> None:
    """A hundred thousand addresses leave a bounded number of accounts."""
    rig = limited(max_in_flight=1)
    clients = rig.core.dispatcher._clients  # type: ignore[attr-defined]
    for number in range(20_000):
        clients._client(f"address-{number}")
    assert len(clients._clients) <= 10_000
    assert not clients._running


def test_without_limits_or_keys_there_are_no_accounts() -> None:
    """Such a router runs the same code as before."""

    @scenario
    async def check() -> None:
        rig = make_rig()
        assert type(rig.core.dispatcher).__name__ == "Dispatcher"
        assert type(rig.core.leases._ending).__name__ == "Ending"

    check()


def test_without_shares_a_flood_takes_everything() -> None:
    """What the shares are for: the light client gets next to nothing."""
    ends = overload({}, RATES)
    assert on_time_share(ends[LIGHT]) < 0.1


def test_a_flood_of_one_client_does_not_starve_another() -> None:
    """The light client is served from the first second on, and little of the device is lost."""
    free, shared = (overload(weights, RATES) for weights in ({}, {LIGHT: 1.0}))
    assert on_time_share(shared[LIGHT]) > 0.8
    served = [sum(each["on_time"] for each in ends.values()) for ends in (free, shared)]
    assert served[1] > 0.85 * served[0]


def test_equal_floods_get_equal_parts_and_weights_divide() -> None:
    """Two clients that want everything get parts by weight."""
    for weight, low, high in ((1.0, 0.8, 1.25), (3.0, 2.4, 4.5)):
        ends = overload({"a": weight, "b": 1.0}, {"a": 100.0, "b": 100.0})
        assert low < ends["a"]["on_time"] / ends["b"]["on_time"] < high


@scenario
async def test_shares_end_with_the_overload() -> None:
    """Once nobody was held for some seconds a client may have everything again."""
    rig = limited(weight=1.0)
    clients = rig.core.dispatcher._clients  # type: ignore[attr-defined]
    clients._level, clients._cut_s = 1.0, rig.clock.monotonic_s()
    running = await started(rig, "one")
    with pytest.raises(ResourceExhaustedError) as caught:
        await rig.answer(rig.job(client="one"))
    assert caught.value.reason == "CLIENT_SHARE"
    await running
    await asyncio.sleep(6.0)
    await asyncio.gather(*(rig.answer(rig.job(client="one")) for _ in range(5)))
    rig.assert_settled()


@scenario
async def test_shares_end_soon_however_long_the_overload_was() -> None:
    """After minutes without an answer, a client that asks on and on has all of it in seconds."""
    rig = make_rig(
        policy="static-small", safety_net=False, silent_eject_s=300.0, clients=[{"name": "one"}]
    )
    rig.tier().default = Behaviour(hang=True)
    for _ in range(300):
        with pytest.raises(DomainError):
            await rig.answer(rig.job(client="one"))
    rig.tier().default = Behaviour()
    end_s = rig.clock.monotonic_s() + 20.0
    refused_s: list[float] = []

    async def ask_on() -> None:
        while rig.clock.monotonic_s() < end_s:
            try:
                await rig.answer(rig.job(client="one"))
            except ResourceExhaustedError:
                refused_s.append(rig.clock.monotonic_s())
                await asyncio.sleep(0.05)

    await asyncio.gather(*(ask_on() for _ in range(5)))
    assert refused_s
    assert max(refused_s) < end_s - 10.0
    rig.assert_settled()


@scenario
async def test_a_claimed_end_does_not_tell_how_long_answers_take() -> None:
    """Else whoever holds tickets for long keeps shares from following the overload."""
    rig = limited(weight=1.0)
    clients = rig.core.dispatcher._clients  # type: ignore[attr-defined]
    before_s = clients._answer_s
    ticket = rig.core.leases.route(rig.job(client="one", prompt=None)).ticket
    await asyncio.sleep(0.3)
    rig.core.leases.close(ticket, Report(Outcome.ON_TIME, None, 8, None))
    assert clients._answer_s == before_s
    await rig.answer(rig.job(client="one"))
    assert clients._answer_s != before_s
