"""What outlives the end of a trainer, and what another one has changed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import AbortedError
from services.common.state.policy_store import MemoryPolicyStore
from services.trainer.mesh_view import RouterSeen
from services.trainer.model import Stage
from services.trainer.promotion import Promotion
from services.trainer.servicer import TrainerServicer
from tests.fakes.clock import settle
from tests.unit.services.trainer.rollouts import (
    WATCHED,
    Bench,
    canary,
    never_confirmed,
)
from tests.unit.services.trainer.test_registry import snapshot
from tiercel.trainer.v1 import trainer_service_pb2 as pb


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


async def test_a_trainer_that_comes_back_goes_on(bench: Bench) -> None:
    """What routers have seen they still know; the registry knows the stage."""
    state = await bench.as_canary()
    registry = bench.over.another()
    await registry.policies()
    assert registry.rollout == state
    later = bench.another(registry)
    bench.mesh.report(canary(state, -0.3))
    await later.look()
    assert registry.rollout.stage is Stage.REJECTED


async def test_what_is_published_meanwhile_does_not_crowd_out_the_policy_on_trial(
    bench: Bench,
) -> None:
    """A canary may take hours, and a run publishes every half minute: the store keeps it."""
    bench.over.store.target = MemoryPolicyStore(limit=3)
    state = await bench.begin()
    for seed in range(2, 9):
        await bench.over.publish(seed)
    registry = bench.over.another()
    await registry.policies()
    assert registry.rollout == state
    assert (await registry.get("dqn", state.version))[1] == snapshot(1)


async def test_a_pin_and_a_rollout_outlive_what_the_store_knew(bench: Bench) -> None:
    """An emptied store, or one that was away, makes no new activation of the old one."""
    bench.over.store.is_down = True
    active = await bench.registry.promote("price")
    await bench.rollouts.on_activation(Promotion(active), by_hand=True)
    bench.over.store.is_down = False
    await bench.registry.policies()
    assert bench.rollouts.pin
    state = await bench.begin()
    bench.over.store.target = MemoryPolicyStore()
    await bench.registry.policies()
    await bench.rollouts.look()
    assert bench.registry.rollout == state
    assert await bench.stage() == (Stage.SHADOW, "")


async def test_a_trainer_that_comes_back_shows_what_is_under_way(bench: Bench) -> None:
    """Its metrics tell stage and watch before it has taken a step itself."""
    names = ("tiercel_trainer_rollout_stage", "tiercel_trainer_watch_under_way")
    version = await bench.over.publish(2)
    active = await bench.registry.promote("dqn", version)
    await bench.rollouts.on_activation(Promotion(active), by_hand=False, is_watched=True)
    await bench.as_canary()
    registry, prometheus = bench.over.another(), CollectorRegistry()
    bench.another(registry, prometheus)
    assert [prometheus.get_sample_value(name) for name in names] == [0.0, 0.0]
    await registry.policies()
    assert [prometheus.get_sample_value(name) for name in names] == [Stage.CANARY.value, 1.0]
    await bench.rollouts.pause("wait")
    await registry.policies()
    assert [prometheus.get_sample_value(name) for name in names] == [0.0, 1.0]


async def test_a_trainer_that_ends_while_it_activates_goes_on_with_that(bench: Bench) -> None:
    """The store has the activation and not the step: the next trainer takes it, and watches."""
    state = await bench.as_canary()
    active = await bench.registry.promote("dqn", state.version)
    registry = bench.over.another()
    await registry.policies()
    later = bench.another(registry)
    bench.mesh.activation = active.activation
    await later.look()
    assert registry.rollout.stage is Stage.ACTIVE
    assert later.watches.state.is_under_way
    assert later.watches.state.activation == active.activation


async def test_what_routers_refuse_is_undone_by_the_next_trainer_too(bench: Bench) -> None:
    """It asks them, as the one before would have."""
    state = await bench.as_canary()
    active = await bench.registry.promote("dqn", state.version)
    registry = bench.over.another()
    await registry.policies()
    bench.mesh.activation, bench.mesh.refusal = active.activation, "SNAPSHOT_SCHEMA_MISMATCH"
    await bench.another(registry).look()
    assert registry.rollout.stage is Stage.REJECTED
    assert await registry.active() is None


async def test_a_pin_whose_caller_leaves_is_one_all_the_same(bench: Bench) -> None:
    """Routers may take seconds to answer; what is active then is pinned, and undone if refused."""
    servicer = TrainerServicer(
        registry=bench.registry,
        promoter=bench.promoter,
        gate=None,  # type: ignore[arg-type]  # it is not asked
        rollouts=bench.rollouts,
        canary_share=0.1,
        runs=None,  # type: ignore[arg-type]
        drop_replay=None,  # type: ignore[arg-type]
        profiles=(),
    )
    at_it, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(interval_s: float) -> AsyncIterator[tuple[RouterSeen, ...]]:
        at_it.set()
        await go_on.wait()
        yield ()

    bench.mesh.watch = slowly  # type: ignore[method-assign]
    request = pb.PromotePolicyRequest(policy="price", without_gate=True)
    asking = asyncio.create_task(servicer.PromotePolicy(request, None))  # type: ignore[arg-type]
    await at_it.wait()
    asking.cancel()
    await settle()
    go_on.set()
    await settle()
    assert asking.cancelled()
    assert bench.registry.activation == 1
    assert bench.rollouts.pin


async def test_a_trainer_killed_behind_a_pin_leaves_it_pinned(bench: Bench) -> None:
    """While it waits for routers, say; be it the pin of what is on trial, which is no step then."""
    state = await bench.as_canary()
    waiting = never_confirmed(bench)
    using = asyncio.create_task(bench.activate("dqn", state.version, by_hand=True))
    await waiting.wait()
    later = await bench.restarted()
    assert later.pin
    await later.look()
    assert bench.registry.rollout.stage is Stage.PROPOSED
    assert not later.watches.state.is_under_way
    assert later.pin
    using.cancel()


async def test_a_trainer_killed_behind_a_promotion_leaves_it_watched(bench: Bench) -> None:
    """The next one goes on with the watch."""
    version = await bench.over.publish(1)
    waiting = never_confirmed(bench)
    promoting = bench.activate("dqn", version, by_hand=False, is_watched=True)
    using = asyncio.create_task(promoting)
    await waiting.wait()
    watches = (await bench.restarted()).watches
    assert watches.state.is_under_way
    assert (watches.state.activation, watches.state.version) == (1, version)
    assert watches.left_s(watches.state) == WATCHED.watch_s
    using.cancel()


class Mortal:
    """A process's way to the store, which ends with the process: before one of its writes."""

    def __init__(self, target: Any, writes: int) -> None:
        self.target = target
        self.writes_left = writes

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.writes_left -= name in ("put", "drop", "activate", "put_rollout")
            if self.writes_left < 0:
                raise asyncio.CancelledError
            return await getattr(self.target, name)(*arguments, **named)

        return call


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("writes", range(8))
async def test_a_trainer_killed_between_any_two_writes_leaves_all_or_nothing(
    bench: Bench, writes: int, by_hand: bool
) -> None:
    """Of an activation, its pin or its watch, and the end of the rollout that was under way."""
    await bench.as_canary()
    version = await bench.over.publish(2)
    store = bench.over.store.target
    bench.over.store.target = Mortal(store, writes)
    with suppress(asyncio.CancelledError):
        await bench.activate("dqn", version, by_hand=by_hand, is_watched=not by_hand)
    bench.over.store.target = store
    later = await bench.restarted()
    await later.look()
    is_active = bench.registry.activation == 1
    assert is_active is (writes > 0)
    assert bench.registry.rollout.is_under_way is not is_active
    assert bool(later.pin) is (is_active and by_hand)
    assert later.watches.state.is_under_way is (is_active and not by_hand)


async def test_a_trainer_that_stood_still_overwrites_nothing(bench: Bench) -> None:
    """Its turn was over: what another one did meanwhile stands, and it goes on from that."""
    state = await bench.as_canary()
    registry = bench.over.another()
    await registry.policies()
    await bench.another(registry).pause("lunch")
    bench.mesh.report(canary(state, -0.3))
    with pytest.raises(AbortedError, match="paused") as caught:
        await bench.rollouts.look()
    assert caught.value.reason == "ROLLOUT_RACED"
    assert bench.registry.rollout.reason == "paused: lunch"
    assert await bench.stage() == (Stage.CANARY, "")
    assert bench.steps("rejected", "worse") == 0.0
    await bench.rollouts.look()
    assert bench.registry.rollout == registry.rollout


async def test_what_was_judged_before_another_trainer_was_heard_of_is_no_step(
    bench: Bench,
) -> None:
    """It may be heard of between the verdict and the step, too."""
    await bench.as_canary()
    judged = bench.registry.rollout
    registry = bench.over.another()
    await registry.policies()
    await bench.another(registry).pause("lunch")
    await bench.registry.policies()
    with pytest.raises(AbortedError, match="paused"):
        await bench.registry.keep_rollout(replace(judged, stage=Stage.SWITCHBACK, period=1))


async def test_a_raced_step_ends_nothing(bench: Bench) -> None:
    """The loop that judges goes on with the next look."""
    state = await bench.as_canary()
    registry = bench.over.another()
    await registry.policies()
    await bench.another(registry).pause("lunch")
    bench.mesh.report(canary(state, -0.3))
    judging = asyncio.create_task(bench.rollouts.run())
    await bench.clock.advance(2.0)
    assert not judging.done()
    assert bench.registry.rollout.is_paused
    judging.cancel()


async def test_a_promotion_that_is_waited_for_leaves_a_later_pin(bench: Bench) -> None:
    """Its routers answer when somebody has pinned another policy by then."""
    go_on, confirm = asyncio.Event(), bench.promoter.confirm

    async def slowly(active: Any) -> Promotion:
        if active.record.policy == "price":
            await go_on.wait()
        return await confirm(active)

    bench.promoter.confirm = slowly  # type: ignore[method-assign]
    promoting = asyncio.create_task(bench.activate("price", by_hand=False))
    await settle()
    await bench.activate("greedy", by_hand=True)
    go_on.set()
    await promoting
    assert bench.rollouts.pin == "activation 2 was made by hand"
