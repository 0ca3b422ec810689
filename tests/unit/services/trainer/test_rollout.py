"""A rollout step by step: verdicts move it, pause it, end it; a pin is respected."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.sequential import Arms, Effect, Judgement, Plan
from services.common.errors import AbortedError, FailedPreconditionError
from services.trainer.gate import GateRefusedError
from services.trainer.model import RolloutState, Stage
from services.trainer.promotion import Promotion, RoutersRefusedError
from services.trainer.rollout import NoRolloutError, RolloutHeldError
from services.trainer.rollout_verdicts import (
    ShadowSeen,
    SwitchPlan,
    SwitchSeen,
    TrialSeen,
    Verdict,
    decides_all,
)
from tests.unit.services.trainer.rollouts import (
    LIMITS,
    SAFE,
    Bench,
    canary,
    shadow,
)
from tests.unit.services.trainer.test_gate import Evaluator
from tests.unit.services.trainer.test_registry import snapshot


@pytest.fixture
def bench() -> Bench:
    """A fresh bench."""
    return Bench()


async def test_a_good_policy_goes_all_the_way(bench: Bench) -> None:
    """Shadow, canary, active; each step with verdict and reason, in the policy's history."""
    await bench.as_canary()
    assert await bench.stage() == (Stage.CANARY, "")
    bench.mesh.report(canary(bench.registry.rollout, 0.3))
    bench.mesh.activation = 1
    await bench.rollouts.look()
    assert await bench.stage() == (Stage.ACTIVE, "")
    state = bench.registry.rollout
    record, _ = await bench.registry.get("dqn", state.version)
    assert [(step.stage, step.verdict) for step in record.steps] == [
        (Stage.SHADOW, Verdict.NONE),
        (Stage.CANARY, Verdict.BETTER),
        (Stage.ACTIVE, Verdict.BETTER),
        (Stage.ACTIVE, Verdict.NONE),  # from here on it is watched
    ]
    assert all(step.reason and step.step_ns for step in record.steps)
    assert bench.steps("active", "better") == 1.0
    assert not state.is_under_way


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (ShadowSeen(decision_count=3.0, fault_count=1.0), "failed"),
        (ShadowSeen(decision_count=200.0, decision_s=4.0), "takes"),
        (ShadowSeen(decision_count=200.0, top_tier_count=200.0), "always takes the same tier"),
    ],
)
async def test_an_unsafe_policy_never_decides(bench: Bench, seen: ShadowSeen, text: str) -> None:
    """It is rejected in shadow, with the reason."""
    state = await bench.begin()
    bench.mesh.report(shadow(state, seen))
    await bench.rollouts.look()
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert text in rejection


async def test_a_worse_canary_is_rejected(bench: Bench) -> None:
    """What was active stays active."""
    await bench.registry.promote("price")
    state = await bench.as_canary()
    bench.mesh.report(canary(state, -0.3))
    await bench.rollouts.look()
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "it earns less" in rejection
    active = await bench.registry.active()
    assert active is not None
    assert active.record.policy == "price"


async def test_a_router_that_stopped_it_has_it_rejected_everywhere(bench: Bench) -> None:
    """With the router's reason."""
    state = await bench.as_canary()
    stopped = TrialSeen(state.number, True, "CANARY_MISSES", "misses 0.5 more")
    bench.mesh.report(TrialSeen(state.number, True), stopped)
    await bench.rollouts.look()
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "router b stopped it: CANARY_MISSES: misses 0.5 more" in rejection


async def test_what_cannot_be_told_is_paused(bench: Bench) -> None:
    """Nothing is tried meanwhile; a test that has given up does not begin anew when asked."""
    state = await bench.as_canary()
    bench.mesh.report(canary(state, 0.0, 20_000))
    await bench.rollouts.look()
    paused = bench.registry.rollout
    assert (paused.is_paused, paused.is_running, paused.stage) == (True, False, Stage.CANARY)
    assert "no difference of 0.1 or more" in paused.reason
    assert bench.steps("paused", "cannot_tell") == 1.0
    await bench.rollouts.look()
    assert bench.registry.rollout == paused
    with pytest.raises(RolloutHeldError, match=r"test is over.*--at-once"):
        await bench.rollouts.resume("promoted again")
    assert bench.registry.rollout == paused


async def test_a_pause_does_not_begin_the_test_anew(bench: Bench) -> None:
    """What was seen before counts with what comes, also after a restart; so alpha holds once."""
    state = await bench.as_canary()
    half = canary(state, 0.05, 500)
    bench.mesh.report(half)
    await bench.rollouts.look()
    assert bench.registry.rollout.is_running
    paused = await bench.rollouts.pause("lunch")
    assert paused.carried.effect == half.canary.effect
    registry = bench.over.another()
    await registry.policies()
    assert registry.rollout == paused
    bench.registry, bench.rollouts = registry, bench.another(registry)
    again = await bench.rollouts.resume("promoted again")
    assert (again.stage, again.is_running, again.number > paused.number) == (
        Stage.CANARY,
        True,
        True,
    )
    await bench.rollouts.look()  # the reports are of the number before
    assert bench.registry.rollout == again
    assert f"{half.canary.request_count:.0f} requests" in bench.rollouts.seen()
    rest = canary(again, 0.05, 500)
    bench.mesh.report(rest)
    await bench.rollouts.look()
    both = half.canary.effect.plus(rest.canary.effect)
    assert LIMITS.canary.judge(half.canary.effect) is Judgement.GO_ON
    assert LIMITS.canary.judge(rest.canary.effect) is Judgement.GO_ON
    assert LIMITS.canary.judge(both) is Judgement.BETTER
    assert bench.registry.rollout.stage is Stage.ACTIVE


def test_equal_policies_keep_their_alpha_over_any_number_of_pauses() -> None:
    """Paused and resumed after every 200 requests, 300 rollouts: hardly any says anything."""
    plan, rng = Plan(alpha=0.1, smallest=0.001, reach=2.0), np.random.default_rng(4)
    wrong = 0
    for _ in range(300):
        carried = Effect()
        for _ in range(10):
            arms = Arms(-1.0, 1.0)
            for drawn, value in zip(rng.random(200) < 0.5, rng.uniform(0, 1, 200), strict=True):
                arms.add(bool(drawn), float(value))
            carried = carried.plus(arms.effect)
            if plan.judge(carried) in (Judgement.BETTER, Judgement.WORSE):
                wrong += 1
                break
    assert wrong <= 30


@pytest.mark.parametrize("stage", [Stage.SHADOW, Stage.CANARY])
async def test_a_mesh_without_traffic_is_not_waited_for_for_ever(
    bench: Bench, stage: Stage
) -> None:
    """After its longest time a stage is paused: nobody can tell."""
    await (bench.begin() if stage is Stage.SHADOW else bench.as_canary())
    bench.mesh.routers = ()
    await bench.rollouts.look()
    bench.clock.move(LIMITS.shadow_s if stage is Stage.SHADOW else LIMITS.canary_s)
    await bench.rollouts.look()
    assert bench.registry.rollout.is_paused
    assert "no verdict within" in bench.registry.rollout.reason


@pytest.mark.parametrize(("shift_s", "is_paused"), [(0.0, True), (-3600.0, False)])
async def test_a_trainer_that_comes_back_waits_no_longer_for_that(
    bench: Bench, shift_s: float, is_paused: bool
) -> None:
    """The time of a stage is that of all trainers together, as far as the clock tells."""
    await bench.as_canary()
    bench.mesh.routers = ()
    bench.clock.move(LIMITS.canary_s - 1.0)
    bench.clock.set_by(shift_s)
    later = await bench.restarted()
    await later.look()
    assert bench.registry.rollout.is_running
    bench.clock.move(1.0)
    await later.look()
    assert bench.registry.rollout.is_paused is is_paused
    bench.clock.move(LIMITS.canary_s)
    await later.look()
    assert bench.registry.rollout.is_paused


async def test_an_activation_meanwhile_ends_it(bench: Bench) -> None:
    """Its control is another policy now: what was seen says nothing any more."""
    state = await bench.as_canary()
    await bench.registry.promote("price")
    bench.mesh.report(canary(state, 0.3))
    await bench.rollouts.look()
    assert await bench.stage() == (Stage.PROPOSED, "")
    active = await bench.registry.active()
    assert active is not None
    assert active.record.policy == "price"


async def test_routers_may_refuse_it_at_the_last_step(bench: Bench) -> None:
    """It is rejected, and what was active is active again."""
    await bench.registry.promote("price")
    state = await bench.as_canary()
    bench.mesh.report(canary(state, 0.3))
    bench.mesh.activation, bench.mesh.refusal = 2, "SNAPSHOT_SCHEMA_MISMATCH"
    await bench.rollouts.look()
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "SNAPSHOT_SCHEMA_MISMATCH" in rejection


async def test_pause_and_end_by_hand(bench: Bench) -> None:
    """A paused one can be ended; without one there is nothing to pause."""
    with pytest.raises(NoRolloutError):
        await bench.rollouts.pause("why not")
    await bench.begin()
    assert (await bench.rollouts.pause("lunch")).reason == "paused: lunch"
    with pytest.raises(NoRolloutError):
        await bench.rollouts.pause("again")
    ended = await bench.rollouts.end("rolled back")
    assert ended is not None
    assert (ended.stage, ended.is_paused) == (Stage.PROPOSED, False)
    assert await bench.rollouts.end("again") is None
    with pytest.raises(NoRolloutError):
        await bench.rollouts.resume("promoted again")


async def test_one_at_a_time(bench: Bench) -> None:
    """One that runs is not disturbed; one that is paused makes way."""
    first = await bench.begin()
    version = await bench.over.publish(2)
    record, _ = await bench.registry.get("dqn", version)
    with pytest.raises(RolloutHeldError, match="under way"):
        await bench.rollouts.begin(record, "passed", by_hand=True)
    await bench.rollouts.pause("wait")
    second = await bench.rollouts.begin(record, "passed", by_hand=True)
    assert (second.version, second.number > first.number) == (version, True)
    old, _ = await bench.registry.get("dqn", first.version)
    assert old.stage is Stage.PROPOSED
    assert old.steps[-1].reason == "another rollout began"


async def test_a_pin_by_hand_wins(bench: Bench) -> None:
    """It ends what is under way, and nothing begins by itself until somebody promotes again."""
    await bench.begin()
    active = await bench.registry.promote("price")
    await bench.rollouts.on_activation(Promotion(active), by_hand=True)
    assert await bench.stage() == (Stage.PROPOSED, "")
    assert bench.rollouts.pin
    record, _ = await bench.registry.get("dqn", bench.registry.rollout.version)
    with pytest.raises(RolloutHeldError, match="by hand"):
        await bench.rollouts.begin(record, "passed", by_hand=False)
    await bench.rollouts.begin(record, "passed", by_hand=True)
    assert not bench.rollouts.pin


async def test_a_pin_while_a_step_is_taken_wins_all_the_same(bench: Bench) -> None:
    """Routers are waited for meanwhile; what was judged before does not overwrite it."""
    state = await bench.as_canary()
    bench.mesh.report(canary(state, 0.3))
    promote, at_it, go_on = bench.promoter.promote, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any, **options: Any) -> Any:
        at_it.set()
        await go_on.wait()
        return await promote(*arguments, **options)

    bench.promoter.promote = slowly  # type: ignore[method-assign]
    looking = asyncio.create_task(bench.rollouts.look())
    await at_it.wait()
    active = await bench.registry.promote("price")
    pinning = asyncio.create_task(bench.rollouts.on_activation(Promotion(active), by_hand=True))
    go_on.set()
    await asyncio.gather(looking, pinning)
    assert bench.rollouts.pin
    found = await bench.registry.active()
    assert found is not None
    assert found.record.policy == "price"
    assert await bench.stage() == (Stage.PROPOSED, "")


async def test_a_rollout_that_ends_leaves_a_rejection(bench: Bench) -> None:
    """Somebody promoted its policy at once meanwhile, and routers refused it."""
    state = await bench.as_canary()
    await bench.registry.reject("dqn", state.version, "refused by a")
    await bench.registry.promote("price")
    await bench.rollouts.look()
    assert await bench.stage() == (Stage.REJECTED, "refused by a")


async def test_a_pin_outlives_a_policy_that_routers_refuse(bench: Bench) -> None:
    """What was pinned is active again, and nobody has promoted anything since."""
    await bench.activate("price", by_hand=True)
    version = await bench.over.publish(1)
    bench.mesh.activation, bench.mesh.refusal = 2, "SNAPSHOT_SCHEMA_MISMATCH"
    with pytest.raises(RoutersRefusedError):
        await bench.activate("dqn", version, by_hand=True)
    assert bench.registry.activation == 3
    assert bench.rollouts.pin == "activation 3 was made by hand"


async def test_promoting_what_is_pinned_ends_its_pin(bench: Bench) -> None:
    """It stays active, and training runs promote again."""
    version = await bench.over.publish(1)
    await bench.activate("dqn", version, by_hand=True)
    assert bench.rollouts.pin
    record, blob = await bench.registry.get("dqn", version)
    gate = bench.gate(Evaluator())
    promotion = await gate.promote(bench.registry, record, blob, by_hand=True)
    assert promotion.activation == bench.registry.activation == 1
    assert not bench.rollouts.pin


async def test_what_the_gate_refuses_is_on_trial_no_more(bench: Bench) -> None:
    """Somebody promoted it at once while its rollout was paused: it does not go on from there."""
    state = await bench.as_canary()
    await bench.rollouts.pause("lunch")
    record, blob = await bench.registry.get("dqn", state.version)
    gate = bench.gate(Evaluator((0.1, 0.99), (0.9, 0.99)))
    with pytest.raises(GateRefusedError):
        await gate.promote(bench.registry, record, blob, by_hand=True, in_steps=False)
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "performance 0.1000" in rejection
    assert not bench.rollouts.is_paused(record)


class BySnapshot:
    """Scores each snapshot as a test says, and everything else badly."""

    def __init__(self, performances: dict[int, float]) -> None:
        self.performances = {snapshot(seed): each for seed, each in performances.items()}

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Answers."""
        found = [self.performances.get(blob, 0.5) for _, blob in arguments[1]]
        return [{"performance": each, "availability": 0.99} for each in found]


async def test_small_losses_do_not_add_up(bench: Bench) -> None:
    """Each policy loses less than the margin, and all together no more than two of them."""
    performances = {1: 0.9, 2: 0.8955, 3: 0.891, 4: 0.8865, 5: 0.92, 6: 0.916}
    gate = bench.gate(BySnapshot(performances))
    versions: dict[int, str] = {}

    async def promote(seed: int) -> Promotion:
        versions[seed] = await bench.over.publish(seed)
        record, blob = await bench.registry.get("dqn", versions[seed])
        return await gate.promote(bench.registry, record, blob, by_hand=True)

    for seed in (1, 2, 3):
        assert (await promote(seed)).activation == seed
    assert bench.registry.rollout.anchor_version == versions[1]
    with pytest.raises(GateRefusedError, match=f"{versions[1]}, the best before"):
        await promote(4)
    later = bench.over.another()
    await later.policies()
    assert later.rollout.anchor_version == versions[1]
    await promote(5)
    await promote(6)
    assert bench.registry.rollout.anchor_version == versions[5]
    await bench.activate("dqn", versions[3], by_hand=True)
    assert bench.registry.rollout.anchor_version == versions[3]


async def test_a_pin_that_comes_while_the_gate_judges_keeps_its_anchor(bench: Bench) -> None:
    """Whoever pins takes what he pins for good: the policy before it is no anchor any more."""
    versions = [await bench.over.publish(seed) for seed in (1, 2)]
    await bench.activate("dqn", versions[0], by_hand=False)
    evaluator = BySnapshot({1: 0.9, 2: 0.9})
    judge = evaluator.call

    async def call(method: str, *arguments: Any, timeout_s: float) -> Any:
        await bench.activate("price", by_hand=True)
        return await judge(method, *arguments, timeout_s=timeout_s)

    evaluator.call = call  # type: ignore[method-assign]
    record, blob = await bench.registry.get("dqn", versions[1])
    with pytest.raises(AbortedError):
        await bench.gate(evaluator).promote(bench.registry, record, blob, by_hand=True)
    assert bench.rollouts.pin
    assert bench.registry.rollout.anchor == ""


async def test_who_does_not_judge_tells_what_routers_have_seen_all_the_same(bench: Bench) -> None:
    """Any trainer may be asked where a rollout stands."""
    state = await bench.begin()
    bench.mesh.report(shadow(state, SAFE))
    assert "asked about 60 decisions" in (await bench.restarted()).seen()


async def test_the_store_may_be_away(bench: Bench) -> None:
    """A rollout goes on in memory, and the store has it when it is back."""
    bench.over.store.is_down = True
    state = await bench.as_canary()
    bench.over.store.is_down = False
    await bench.registry.policies()
    other = bench.over.another()
    await other.policies()
    assert other.rollout == state


async def test_watchers_get_what_is_on_trial_and_every_change(bench: Bench) -> None:
    """At once, be it nothing; with the snapshot while it runs."""
    stream = bench.registry.watch_rollout()
    assert (await anext(stream))[0].number == 0
    state = await bench.begin()
    assert await anext(stream) == (state, snapshot(1))
    await bench.rollouts.pause("wait")
    paused, blob = await anext(stream)
    assert (paused.is_paused, blob) == (True, b"")


async def test_without_a_monitor_there_are_no_steps(bench: Bench) -> None:
    """Nobody would hear what routers see."""
    bench.mesh.has_monitor = False
    with pytest.raises(FailedPreconditionError, match="load monitor"):
        await bench.begin()


@pytest.mark.parametrize(
    ("mode", "by_hand", "in_steps", "is_stepped"),
    [
        ("unattended", False, None, True),
        ("unattended", True, None, False),
        ("unattended", True, True, True),
        ("always", True, None, True),
        ("always", True, False, False),
        ("never", False, None, False),
        ("never", True, True, True),
    ],
)
async def test_which_promotions_go_in_steps(
    bench: Bench, mode: Any, by_hand: bool, in_steps: bool | None, is_stepped: bool
) -> None:
    """Those that nobody asked for, unless the settings or the call say otherwise."""
    gate = bench.gate(Evaluator((0.9, 0.99), (0.9, 0.99)), mode)
    version = await bench.over.publish(1)
    record, blob = await bench.registry.get("dqn", version)
    promotion = await gate.promote(bench.registry, record, blob, by_hand=by_hand, in_steps=in_steps)
    assert (promotion.rollout is not None) is is_stepped
    assert (promotion.active is None) is is_stepped


async def test_what_is_activated_during_the_simulation_stays(bench: Bench) -> None:
    """Also where nothing was active when the gate began."""

    class Slow(Evaluator):
        async def call(self, *arguments: Any, **options: Any) -> Any:
            await bench.registry.promote("price")
            return await super().call(*arguments, **options)

    gate = bench.gate(Slow((0.9, 0.99), (0.9, 0.99)))
    version = await bench.over.publish(1)
    record, blob = await bench.registry.get("dqn", version)
    with pytest.raises(AbortedError, match="expected 0, found 1"):
        await gate.promote(bench.registry, record, blob, by_hand=False)
    active = await bench.registry.active()
    assert active is not None
    assert active.record.policy == "price"


class SwitchBench(Bench):
    """A bench whose rollouts are confirmed by switching the whole mesh back and forth."""

    def __init__(self, pairs: int = 3) -> None:
        plan = SwitchPlan(pairs=pairs, period_s=30.0, alpha=0.05)
        super().__init__(limits=replace(LIMITS, switch=plan))

    async def begin_switching(self) -> RolloutState:
        """Takes a snapshot to its third stage."""
        state = await self.as_canary()
        self.mesh.report(canary(state, 0.3))
        await self.rollouts.look()
        assert self.registry.rollout.stage is Stage.SWITCHBACK
        return self.registry.rollout

    async def switch(self, periods: int, effect: float, requests: float = 200.0) -> None:
        """Lets periods go by, in each of which two routers report, and late ends too."""
        for _ in range(periods):
            state = self.registry.rollout
            if state.stage is not Stage.SWITCHBACK or not state.is_running:
                return
            self.report_switch(state, effect, requests)
            self.clock.move(11.0)
            await self.rollouts.look()
            state = self.registry.rollout
            if state.stage is Stage.SWITCHBACK and state.is_running:
                self.report_switch(state, effect, requests)
                self.clock.move(20.0)
                await self.rollouts.look()

    def report_switch(self, state: RolloutState, effect: float, requests: float) -> None:
        """Has two routers report the last two periods of a switchback."""

        def reward(period: int) -> float:
            on_trial = decides_all(state.number, state.version, period)
            return requests * (0.6 + (effect if on_trial else 0.0))

        seen = SwitchSeen(
            period=state.period,
            request_count=requests,
            reward_sum=reward(state.period),
            last_request_count=requests if state.period > 1 else 0.0,
            last_reward_sum=reward(state.period - 1) if state.period > 1 else 0.0,
        )
        self.mesh.report(*(TrialSeen(state.number, True, switch=seen) for _ in range(2)))


async def test_the_whole_mesh_is_switched_before_the_last_step() -> None:
    """Three pairs of periods; what earns no less then becomes active, and what was seen is told."""
    bench = SwitchBench()
    state = await bench.begin_switching()
    assert (state.period, state.differences) == (1, ())
    await bench.switch(3, 0.1)
    assert list(bench.registry.rollout.differences) == pytest.approx([0.1])
    assert "over 1 pairs of periods of 30 s" in bench.rollouts.seen()
    assert await bench.stage() == (Stage.SWITCHBACK, "")
    await bench.switch(4, 0.1)
    done = bench.registry.rollout
    assert done.stage is Stage.ACTIVE
    assert len(done.differences) == 3
    record, _ = await bench.registry.get("dqn", done.version)
    assert [step.stage for step in record.steps][-3:-1] == [Stage.SWITCHBACK, Stage.ACTIVE]
    assert "it earns no less when it decides everything" in record.steps[-2].reason
    assert bench.steps("switchback", "better") == 1.0


async def test_a_canary_that_earned_at_the_cost_of_others_is_paused() -> None:
    """With the mesh for itself it earns less: three pairs cannot prove it, so somebody decides."""
    bench = SwitchBench()
    await bench.begin_switching()
    await bench.switch(8, -0.1)
    state = bench.registry.rollout
    assert (state.stage, state.is_paused) == (Stage.SWITCHBACK, True)
    assert "it may earn less when it decides everything" in state.reason
    assert bench.steps("paused", "cannot_tell") == 1.0
    # It would be paused again at once, for all its pairs are over.
    with pytest.raises(RolloutHeldError, match=r"test is over.*3 pairs.*--at-once"):
        await bench.rollouts.resume("promoted again")
    assert bench.registry.rollout == state


async def test_one_that_is_surely_worse_everywhere_is_rejected() -> None:
    """Once the pairs prove it, before all of them are over."""
    bench = SwitchBench(pairs=30)
    await bench.begin_switching()
    await bench.switch(40, -0.1)
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "it earns less when it decides everything" in rejection
    assert len(bench.registry.rollout.differences) < 12


async def test_periods_without_traffic_say_nothing() -> None:
    """They are switched on until there was enough, or the stage took too long."""
    bench = SwitchBench()
    await bench.begin_switching()
    await bench.switch(6, 0.1, requests=3.0)
    assert bench.registry.rollout.differences == ()
    await bench.switch(20, 0.1, requests=3.0)
    assert bench.registry.rollout.is_paused
    assert "no verdict within" in bench.registry.rollout.reason


async def test_a_switchback_survives_the_trainer_and_a_pause() -> None:
    """What was judged is kept; the pair that was under way begins anew."""
    bench = SwitchBench()
    await bench.begin_switching()
    await bench.switch(3, 0.1)
    registry = bench.over.another()
    await registry.policies()
    assert registry.rollout == bench.registry.rollout
    paused = await bench.rollouts.pause("lunch")
    assert not paused.is_running
    again = await bench.rollouts.resume("on")
    assert (again.period, again.judged, len(again.differences)) == (3, 2, 1)
    await bench.switch(5, 0.1)
    assert bench.registry.rollout.stage is Stage.ACTIVE


async def test_a_router_that_stops_it_ends_the_switchback() -> None:
    """With its reason; the policy decides nowhere from then on."""
    bench = SwitchBench()
    state = await bench.begin_switching()
    stopped = TrialSeen(state.number, True, "CANARY_MISSES", "by far", switch=SwitchSeen(period=1))
    bench.mesh.report(stopped)
    await bench.rollouts.look()
    stage, rejection = await bench.stage()
    assert stage is Stage.REJECTED
    assert "CANARY_MISSES" in rejection


@pytest.mark.parametrize("shift_s", [3600.0, -3600.0])
async def test_a_clock_that_is_set_makes_no_period_longer_or_shorter(shift_s: float) -> None:
    """A cut one would be judged by what belongs to the one before."""
    bench = SwitchBench()
    state = await bench.begin_switching()
    bench.report_switch(state, 0.1, 200.0)
    bench.clock.move(11.0)
    await bench.rollouts.look()
    bench.clock.set_by(shift_s)
    await bench.rollouts.look()
    assert bench.registry.rollout.period == 1
    bench.clock.move(20.0)
    await bench.rollouts.look()
    assert bench.registry.rollout.period == 2
