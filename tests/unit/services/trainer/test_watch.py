"""The watch over a policy that has become active: it stays, goes back, or makes way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from router.watch import FAILED, REASON_MISSES, Figures, WatchReport, load_class
from services.common.errors import AbortedError
from services.trainer.convert import decode_rollout, encode_rollout
from services.trainer.mesh_view import RouterSeen
from services.trainer.model import RolloutStep, Stage, WatchStage
from services.trainer.promotion import Promotion, RoutersRefusedError
from services.trainer.rollout_verdicts import Verdict
from tests.unit.services.trainer.rollouts import Bench, canary

CALM = load_class(4.0, 1.0)


def figures(requests: float, missed: float = 0.0) -> Figures:
    """Returns figures of one class."""
    made = Figures()
    made.ends_LE[CALM, :FAILED] = requests, missed
    return made


def seen(activation: int, after: Figures, *, problem: str = "") -> WatchReport:
    """Returns a report beside a good policy that served 500 requests there."""
    return WatchReport(activation, problem, "by far" if problem else "", figures(500.0), after)


class WatchBench(Bench):
    """A bench with a policy that has just been promoted over another one."""

    async def promote(self, number: int = 1) -> int:
        """Publishes and promotes a snapshot, as the gate does; returns the activation."""
        version = await self.over.publish(number)
        active = await self.registry.promote("dqn", version)
        await self.rollouts.on_activation(Promotion(active), by_hand=False, is_watched=True)
        return active.activation

    def hear(self, *reports: WatchReport) -> None:
        """Has routers report."""
        self.mesh.routers = tuple(
            RouterSeen(name, 1, report.activation, "", None, report)
            for name, report in zip("abcd", reports, strict=False)
        )

    def watch_steps(self, stage: str) -> float:
        """Returns how many steps were counted."""
        name, labels = "tiercel_trainer_watch_steps_total", {"stage": stage}
        return self.prometheus.get_sample_value(name, labels) or 0.0


@pytest.fixture
def bench() -> WatchBench:
    """A fresh bench."""
    return WatchBench()


async def test_a_policy_that_misses_is_taken_back(bench: WatchBench) -> None:
    """By the sum of what routers saw, though none of them saw enough; every step is told."""
    await bench.registry.promote("price")
    activation = await bench.promote()
    state = bench.rollouts.watches.state
    assert (state.stage, state.replaced) == (WatchStage.UNDER_WAY, "price")
    bench.hear(seen(activation, figures(15.0, 15.0)), seen(activation, figures(15.0, 2.0)))
    await bench.rollouts.look()
    assert bench.registry.activation == activation
    assert "30 requests" in bench.rollouts.watches.seen()
    bench.hear(*(seen(activation, figures(15.0, 15.0)) for _ in range(4)))
    await bench.rollouts.look()
    active = await bench.registry.active()
    assert active is not None
    assert active.record.policy == "price"
    state = bench.rollouts.watches.state
    assert state.stage is WatchStage.WENT_BACK
    assert state.reason.startswith(f"{REASON_MISSES}: it misses 1.000 of 60 requests")
    record, _ = await bench.registry.get("dqn", state.version)
    assert record.stage is Stage.REJECTED
    assert record.rejection == state.reason
    assert [(step.stage, step.verdict) for step in record.steps] == [
        (Stage.ACTIVE, Verdict.NONE),
        (Stage.REJECTED, Verdict.WORSE),
    ]
    assert (bench.watch_steps("under_way"), bench.watch_steps("went_back")) == (1.0, 1.0)
    await bench.rollouts.look()
    assert bench.watch_steps("went_back") == 1.0


async def test_the_word_of_one_router_is_enough(bench: WatchBench) -> None:
    """It has gone back already; the mesh follows, here to the policy of the settings."""
    activation = await bench.promote()
    bench.hear(
        seen(activation, figures(40.0)), seen(activation, figures(2.0), problem="WATCH_FAULTS")
    )
    await bench.rollouts.look()
    assert await bench.registry.active() is None
    assert "router b went back: WATCH_FAULTS: by far" in bench.rollouts.watches.state.reason


async def test_a_good_policy_is_kept(bench: WatchBench) -> None:
    """When the stated time is over; what other activations saw does not count."""
    activation = await bench.promote()
    bench.hear(seen(activation - 1, figures(500.0, 500.0)), seen(activation, figures(900.0, 9.0)))
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.is_under_way
    await bench.clock.advance(bench.rollouts.watches.plan.watch_s + 1.0)
    await bench.rollouts.look()
    state = bench.rollouts.watches.state
    assert state.stage is WatchStage.KEPT
    assert "900 requests, in time 0.9900" in state.reason
    assert bench.registry.activation == activation


async def test_what_nobody_was_heard_of_is_not_called_good(bench: WatchBench) -> None:
    """Monitor and trainer were away as the time ended: a router may have gone back meanwhile."""
    await bench.registry.promote("price")
    activation = await bench.promote()
    await bench.clock.advance(bench.rollouts.watches.plan.watch_s + 1.0)
    bench.mesh.is_fresh = False
    await bench.rollouts.look()
    bench.mesh.is_fresh = True
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.is_under_way
    bench.hear(seen(activation, figures(2.0), problem="WATCH_FAULTS"))
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.stage is WatchStage.WENT_BACK


async def test_without_a_monitor_the_time_ends_it(bench: WatchBench) -> None:
    """Nobody will ever be heard; routers go back for themselves."""
    bench.mesh.has_monitor = False
    await bench.promote()
    await bench.clock.advance(bench.rollouts.watches.plan.watch_s + 1.0)
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.stage is WatchStage.KEPT


async def test_a_pin_by_hand_ends_it(bench: WatchBench) -> None:
    """What somebody pinned is never watched, be it the same policy; nothing goes back."""
    activation = await bench.promote()
    version = bench.rollouts.watches.state.version
    pinned = await bench.registry.promote("dqn", version)
    await bench.rollouts.on_activation(Promotion(pinned), by_hand=True)
    state = bench.rollouts.watches.state
    assert (state.stage, "by hand" in state.reason) == (WatchStage.ENDED, True)
    bench.hear(*(seen(activation, figures(500.0, 500.0)) for _ in range(2)))
    await bench.rollouts.look()
    assert bench.registry.activation == pinned.activation


async def test_another_activation_ends_it(bench: WatchBench) -> None:
    """One that nobody here made, too, such as of another trainer."""
    await bench.promote()
    await bench.registry.promote("price")
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.stage is WatchStage.ENDED
    await bench.promote(2)
    assert bench.rollouts.watches.state.is_under_way
    again = await bench.promote(3)
    assert bench.rollouts.watches.state.activation == again
    assert bench.watch_steps("ended") == 2.0


async def test_a_policy_by_steps_is_watched_too(bench: WatchBench) -> None:
    """From the step that makes it active on; the rollout ends as it did before."""
    state = await bench.as_canary()
    bench.mesh.report(canary(state, 0.3))
    bench.mesh.activation = 1
    await bench.rollouts.look()
    assert bench.registry.rollout.stage is Stage.ACTIVE
    watch = bench.rollouts.watches.state
    assert (watch.activation, watch.is_under_way) == (bench.registry.activation, True)
    assert watch.replaced == ""


async def test_policies_without_a_snapshot_are_not_watched(bench: WatchBench) -> None:
    """They learned nothing that traffic has to show."""
    active = await bench.registry.promote("price")
    await bench.rollouts.on_activation(Promotion(active), by_hand=False, is_watched=True)
    assert not bench.rollouts.watches.state.is_under_way


async def test_a_trainer_that_comes_back_goes_on_watching(bench: WatchBench) -> None:
    """The store has the watch; the routers have the figures."""
    activation = await bench.promote()
    registry = bench.over.another()
    await registry.policies()
    assert registry.rollout == bench.registry.rollout
    later = bench.another(registry)
    bench.hear(*(seen(activation, figures(40.0, 40.0)) for _ in range(2)))
    await later.look()
    assert later.watches.state.stage is WatchStage.WENT_BACK


async def test_a_rollout_that_begins_meanwhile_leaves_the_watch(bench: WatchBench) -> None:
    """Both go on; when the watched policy goes back, the rollout beside it ends."""
    activation = await bench.promote()
    version = await bench.over.publish(2)
    record, _ = await bench.registry.get("dqn", version)
    await bench.rollouts.begin(record, "passed", by_hand=True)
    assert bench.rollouts.watches.state.is_under_way
    assert decode_rollout(encode_rollout(bench.registry.rollout)) == bench.registry.rollout
    bench.hear(*(seen(activation, figures(40.0, 40.0)) for _ in range(2)))
    await bench.rollouts.look()
    assert bench.rollouts.watches.state.stage is WatchStage.WENT_BACK
    assert not bench.registry.rollout.is_under_way


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0])
async def test_a_clock_that_is_set_neither_ends_a_watch_nor_draws_it_out(
    bench: WatchBench, shift_s: float
) -> None:
    """It lasts as long as it was to, by the trainer's own clock."""
    activation = await bench.promote()
    watches = bench.rollouts.watches
    bench.hear(seen(activation, figures(900.0, 9.0)))
    await bench.clock.advance(10.0)
    bench.clock.set_by(shift_s)
    await bench.rollouts.look()
    assert watches.state.is_under_way
    assert watches.left_s(watches.state) == pytest.approx(watches.plan.watch_s - 10.0)
    await bench.clock.advance(watches.plan.watch_s - 9.0)
    await bench.rollouts.look()
    assert watches.state.stage is WatchStage.KEPT


async def test_a_trainer_that_comes_back_watches_for_what_is_left(bench: WatchBench) -> None:
    """Which the stamps tell, but never for longer than the whole."""
    await bench.promote()
    whole_s = bench.rollouts.watches.plan.watch_s
    for shift_s, left_s in ((0.0, whole_s - 100.0), (-3600.0, whole_s)):
        await bench.clock.advance(100.0 if not shift_s else 0.0)
        bench.clock.set_by(shift_s)
        registry = bench.over.another()
        await registry.policies()
        later = bench.another(registry).watches
        assert later.left_s(later.state) == pytest.approx(left_s)


async def test_a_promotion_at_once_is_told_once(bench: WatchBench) -> None:
    """It is noted in one step with the activation, and the watch before it has ended by that."""
    versions = [await bench.over.publish(number) for number in (1, 2)]
    for version in versions:
        await bench.activate("dqn", version, by_hand=False, is_watched=True)
    assert (bench.watch_steps("under_way"), bench.watch_steps("ended")) == (2.0, 1.0)
    state = bench.rollouts.watches.state
    assert (state.activation, state.version, state.replaced_version) == (
        2,
        versions[1],
        versions[0],
    )
    assert state.reason == f"it is compared with dqn {versions[0]} for 600 s"
    for version, stages in zip(
        versions, ([Stage.ACTIVE, Stage.PROPOSED], [Stage.ACTIVE]), strict=True
    ):
        record, _ = await bench.registry.get("dqn", version)
        assert [step.stage for step in record.steps] == stages


async def test_what_routers_refuse_was_never_watched(bench: WatchBench) -> None:
    """The watch that it cut short ends, and is told of."""
    versions = [await bench.over.publish(number) for number in (1, 2)]
    await bench.activate("dqn", versions[0], by_hand=False, is_watched=True)
    bench.mesh.activation, bench.mesh.refusal = 2, "SNAPSHOT_SCHEMA_MISMATCH"
    with pytest.raises(RoutersRefusedError):
        await bench.activate("dqn", versions[1], by_hand=False, is_watched=True)
    await bench.rollouts.look()
    state = bench.rollouts.watches.state
    assert (state.activation, state.stage) == (1, WatchStage.ENDED)
    assert (bench.watch_steps("under_way"), bench.watch_steps("ended")) == (1.0, 1.0)
    for version, stages in ((versions[0], [Stage.ACTIVE, Stage.PROPOSED]), (versions[1], [])):
        record, _ = await bench.registry.get("dqn", version)
        assert [step.stage for step in record.steps] == stages


async def test_what_routers_refuse_is_no_anchor(bench: WatchBench) -> None:
    """Whoever pinned it has pinned nothing: the gate compares with what it compared with before."""
    versions = [await bench.over.publish(number) for number in (1, 2)]
    await bench.activate("dqn", versions[0], by_hand=True)
    bench.mesh.activation, bench.mesh.refusal = 2, "SNAPSHOT_SCHEMA_MISMATCH"
    with pytest.raises(RoutersRefusedError):
        await bench.activate("dqn", versions[1], by_hand=True)
    assert bench.registry.rollout.anchor_version == versions[0]
    assert bench.rollouts.pin == "activation 3 was made by hand"


async def test_a_watch_that_begins_is_not_told_as_ended(bench: WatchBench) -> None:
    """Though another trainer changes what is stored with it before this one goes on."""
    other = bench.over.another()
    store = bench.over.store.target

    class Meanwhile:
        """A store in which another trainer changes something behind each activation."""

        def __getattr__(self, name: str) -> Any:
            async def call(*arguments: Any, **named: Any) -> Any:
                found = await getattr(store, name)(*arguments, **named)
                if name == "activate":
                    await other.policies()
                    await other.change_rollout(lambda state: replace(state, anchor="price"))
                return found

            return call

    version = await bench.over.publish(1)
    bench.over.store.target = Meanwhile()
    await bench.activate("dqn", version, by_hand=False, is_watched=True)
    assert bench.registry.rollout.anchor == "price"
    assert bench.rollouts.watches.state.is_under_way
    assert (bench.watch_steps("under_way"), bench.watch_steps("ended")) == (1.0, 0.0)


async def test_a_watch_that_another_trainer_ended_is_not_judged_again(bench: WatchBench) -> None:
    """What was seen of it says nothing any more."""
    activation = await bench.promote()
    state = bench.rollouts.watches.state
    registry = bench.over.another()
    await registry.policies()
    later = bench.another(registry)
    bench.hear(*(seen(activation, figures(40.0, 40.0)) for _ in range(2)))
    await later.look()
    assert later.watches.state.stage is WatchStage.WENT_BACK
    kept = replace(state, stage=WatchStage.KEPT, reason="it broke no limit")
    step = RolloutStep(1, Stage.ACTIVE, Verdict.BETTER, "it broke no limit")
    with pytest.raises(AbortedError, match="changed meanwhile"):
        await bench.registry.keep_watch(kept, step, replaces=state)
    assert bench.rollouts.watches.state == later.watches.state
