"""A router explores a small share, and nothing where it cannot afford to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.router_inference import health_notes
from services.router_inference.job import Arm
from tests.unit.services.router_inference.parts import Rig, choice_of, make_rig
from tests.unit.services.router_inference.scenario import scenario

COUNT = 200


async def serve(rig: Rig, count: int = COUNT) -> list[bool]:
    """Answers requests one after the other; returns which decisions explored."""
    explored = []
    for _ in range(count):
        job = rig.job()
        await rig.answer(job)
        choice = choice_of(job)
        assert choice.explored == (choice.target.tier != "large")
        explored.append(choice.explored)
    return explored


@scenario
async def test_nothing_is_explored_unless_the_settings_say_so() -> None:
    """Off by default: no decision is counted, and each is the policy's."""
    rig = make_rig()
    await asyncio.sleep(1.0)
    assert not any(await serve(rig, 20))
    assert rig.core.status.read().exploration_counts == {}


@scenario
async def test_a_share_is_explored_recorded_and_shown() -> None:
    """Records carry flag and probability; status and metrics count what became of each decision."""
    rig = make_rig(exploration_share=0.05, seed=7)
    await asyncio.sleep(1.0)
    explored = await serve(rig)
    assert 2 <= sum(explored) <= 20
    records = [e.decision for e in await rig.records() if e.HasField("decision")]
    assert [record.explored for record in records] == explored
    assert {r.behavior_probability for r in records if not r.explored} == {0.95}
    # Two other tiers are in time on one endpoint.
    assert {r.behavior_probability for r in records if r.explored} == {0.025}
    status = rig.core.status.read()
    assert status.exploration.share == 0.05
    assert status.exploration_counts == {
        "explored": sum(explored), "not_drawn": COUNT - sum(explored),
    }  # fmt: skip
    told = rig.app.registry.get_sample_value(
        "tiercel_exploration_decisions_total", {"result": "explored"}
    )
    assert told == sum(explored)


def _press(rig: Rig) -> None:
    rig.core.hold._seen.pressure_K[0] = 4.0


def _degrade(rig: Rig) -> None:
    rig.core.notes.set(health_notes.REDIS_UNREACHABLE, True)


def _lose_policy(rig: Rig) -> None:
    rig.core.slot.guard.replace(None)


@pytest.mark.parametrize(
    ("hinder", "why"),
    [(_press, "pressure"), (_degrade, "degraded"), (_lose_policy, "fallback")],
)
def test_nothing_is_explored_where_it_cannot_be_afforded(
    hinder: Callable[[Rig], None], why: str
) -> None:
    """While a target is missed, while the router is degraded, and by the fallback."""

    @scenario
    async def run() -> None:
        rig = make_rig(exploration_share=0.05, seed=7)
        await asyncio.sleep(1.0)
        hinder(rig)
        for _ in range(50):
            job = rig.job()
            await rig.answer(job)
            choice = choice_of(job)
            assert (choice.explored, choice.behavior_probability) == (False, 1.0)
            hinder(rig)
        assert rig.core.status.read().exploration_counts == {why: 50}

    run()


@scenario
async def test_a_router_that_has_just_begun_explores_nothing() -> None:
    """It knows nothing of the traffic in its first deadline."""
    rig = make_rig(exploration_share=0.05, seed=7)
    rig.core.hold.begin(rig.app.clock.monotonic_s())
    await rig.answer(rig.job())
    assert rig.core.status.read().exploration_counts == {"pressure": 1}


@scenario
async def test_neither_side_of_a_trial_is_explored_with() -> None:
    """What is compared is the policies alone."""
    rig = make_rig(exploration_share=0.05)
    await asyncio.sleep(1.0)
    job = rig.job()
    job.arm = Arm.CONTROL
    await rig.answer(job)
    assert rig.core.status.read().exploration_counts == {"trial": 1}
