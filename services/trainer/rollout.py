"""The rollout of a learned policy: shadow, canary, switchback, active, each step by a verdict.

Where a rollout stands is in the registry, and what was seen of it is in the routers, so a trainer
that dies and comes back goes on where it was. Routers report their sums with their load; they are
added up here and judged twice a second (`rollout_verdicts.py`). Every step is an event: a line in
the log, a count, a span, and an entry in the history of the policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from router.sequential import Judgement, Plan
from services.common.clock import Clock
from services.common.errors import AbortedError, DomainError, FailedPreconditionError, cut
from services.common.log import Logger
from services.common.telemetry import Telemetry
from services.common.times import from_ns
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import (
    IN_ROLLOUT,
    PolicyRecord,
    RolloutState,
    RolloutStep,
    Stage,
    WatchState,
)
from services.trainer.promotion import Promoter, Promotion, RoutersRefusedError
from services.trainer.registry import ActivationNote, ActivePolicy, PolicyRegistry
from services.trainer.rollout_tally import StageKey, Tally
from services.trainer.rollout_verdicts import (
    Finding,
    ShadowLimits,
    SwitchPlan,
    Verdict,
    decides_all,
    difference,
    judge_canary,
    judge_shadow,
    judge_switchback,
    pair_difference,
    switched,
)
from services.trainer.turn import Turn, TurnLostError
from services.trainer.watch import Watches

STEP_SPAN = "tiercel.rollout.step"
TICK_S = 0.5
"""Time between two looks at what routers report, seconds."""
_LONGEST_REASON = 1_000

Promote = Callable[[ActivationNote | None], Coroutine[Any, Any, Promotion]]
"""Activates a policy with what is to be noted in one step with it."""


class _Before(NamedTuple):
    """What was known before an activation.

    Attributes:
        state: of the rollout, its pin, its watch and the gate's anchor.
        activation: number of the activation before.
        policy: name and version of what was active.
    """

    state: RolloutState
    activation: int
    policy: tuple[str, str]


class NoRolloutError(FailedPreconditionError):
    """There is no rollout under way."""


class RolloutHeldError(FailedPreconditionError):
    """No rollout may begin now: another one runs, or somebody pinned a policy by hand."""


@dataclass(frozen=True, slots=True)
class RolloutLimits:
    """What a rollout must keep to.

    Attributes:
        shadow: what a policy must keep to in shadow.
        canary: the test of the canary.
        switch: how the whole mesh is switched back and forth before the last step.
        shadow_s: longest time in shadow, seconds.
        canary_s: longest time as a canary, and in the switchback, seconds.
    """

    shadow: ShadowLimits
    canary: Plan
    switch: SwitchPlan
    shadow_s: float
    canary_s: float


class Rollouts:
    """Begins, judges, pauses and ends rollouts, one at a time."""

    def __init__(
        self,
        *,
        registry: PolicyRegistry,
        promoter: Promoter,
        mesh: MeshView,
        turn: Turn,
        watches: Watches,
        limits: RolloutLimits,
        telemetry: Telemetry,
        metrics: TrainerMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes its parts; `turn` says which of several trainers judges, rollouts and watches."""
        self._registry = registry
        self._promoter = promoter
        self._mesh = mesh
        self._turn = turn
        self.watches = watches
        self.limits = limits
        self._telemetry = telemetry
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._tally = Tally()
        # A step takes seconds where routers are waited for; what somebody wants comes after it.
        self._lock = asyncio.Lock()
        self._judged: StageKey | None = None
        self._judged_since_s = 0.0
        self._period_of, self._period_since_s = (0, 0), 0.0
        self._begun: set[asyncio.Task[Promotion]] = set()
        metrics.rollout_stage.set_function(self._stage_number)

    @property
    def is_possible(self) -> bool:
        """True if routers can be heard: without a load monitor nobody tells what they see."""
        return self._mesh.has_monitor

    @property
    def pin(self) -> str:
        """Why no rollout begins by itself, empty if nothing hinders it."""
        state = self._registry.rollout
        if state.pinned_activation != self._registry.activation:
            return ""
        return f"activation {state.pinned_activation} was made by hand"

    def seen(self) -> str:
        """Returns what the present stage has seen, for people; empty if none runs."""
        state = self._registry.rollout
        if not state.is_running:
            return ""
        self._tally.take(state, self._mesh.routers)  # also where another trainer judges it
        if state.stage is Stage.SHADOW:
            return str(self._tally.shadow)
        if state.stage is Stage.SWITCHBACK:
            plan = self.limits.switch
            return f"period {state.period} of {2 * plan.pairs}; {switched(state.differences, plan)}"
        canary = self._tally.canary
        return f"{canary}; {difference(canary, self.limits.canary)}"

    async def begin(self, record: PolicyRecord, reason: str, *, by_hand: bool) -> RolloutState:
        """Puts a policy into shadow; one that waits for somebody makes way.

        Args:
            record: the policy, in the registry.
            reason: why it may begin.
            by_hand: somebody asked for it, so what was pinned before is pinned no more.

        Raises:
            AbortedError: Another trainer has changed the rollout meanwhile.
            RolloutHeldError: Another one runs, or something is pinned and nobody asked.
            FailedPreconditionError: There is no load monitor to hear routers by.
        """
        if not self.is_possible:
            raise FailedPreconditionError(
                "a rollout in steps needs a load monitor, by which routers tell what they see",
                reason="ROLLOUT_NEEDS_MONITOR",
            )
        async with self._lock:
            before = self._registry.rollout
            self.check_free(by_hand=by_hand)
            if before.is_under_way:
                text = "another rollout began"
                before = await self._step(before, Stage.PROPOSED, Verdict.NONE, text)
            state = RolloutState(
                # Above those that routers may remember of a registry that was lost.
                number=max(before.number + 1, self._clock.wall_ns() // 10**9),
                policy=record.policy,
                version=record.version,
                begin_ns=self._clock.wall_ns(),
                activation=self._registry.activation,
                revision=before.revision,
            )
            return await self._step(state, Stage.SHADOW, Verdict.NONE, reason)

    def check_free(self, *, by_hand: bool) -> None:
        """Raises RolloutHeldError if no rollout may begin now."""
        state = self._registry.rollout
        if state.is_running:
            raise RolloutHeldError(
                f"the rollout of {state.policy} {state.version} is under way "
                f"({state.stage.name.lower()}); `tiercel policy rollback` ends it",
                reason="ROLLOUT_UNDER_WAY",
            )
        if self.pin and not by_hand:
            raise RolloutHeldError(self.pin, reason="POLICY_PINNED")

    def is_paused(self, record: PolicyRecord) -> bool:
        """Returns whether the rollout of a policy waits for somebody."""
        state = self._registry.rollout
        named = (state.policy, state.version) == (record.policy, record.version)
        return named and state.is_under_way and state.is_paused

    async def resume(self, reason: str) -> RolloutState:
        """Lets a paused rollout go on where it stood, with what the canary's test had seen.

        Raises:
            NoRolloutError: None is paused.
            RolloutHeldError: Its test is over, and more of it would show no more.
        """
        async with self._lock:
            state = self._registry.rollout
            if not (state.is_under_way and state.is_paused):
                raise _no_rollout("paused")
            self._check_open(state)
            # Another number: routers begin to count anew, and what they count is added to what the
            # test had seen. A test that began anew at each pause would not keep its promise.
            again = replace(
                state,
                number=state.number + 1,
                is_paused=False,
                activation=self._registry.activation,
                pinned_activation=-1,
                # The pair that was under way is lost; those that were judged stay.
                period=state.judged + 1 if state.period else 0,
                period_ns=self._clock.wall_ns() if state.period else 0,
            )
            return await self._step(again, state.stage, Verdict.NONE, reason)

    async def pause(self, reason: str) -> RolloutState:
        """Has no router ask the policy until somebody promotes it again.

        Raises:
            NoRolloutError: None is under way.
        """
        await self._mesh.refresh()
        async with self._lock:
            state = self._registry.rollout
            if not state.is_running:
                raise _no_rollout("running")
            self._tally.take(state, self._mesh.routers)
            return await self._pause(state, Verdict.NONE, reason)

    async def end(self, reason: str) -> RolloutState | None:
        """Ends the rollout under way, be it paused or not; returns None if there is none."""
        async with self._lock:
            return await self._end(reason)

    async def drop(self, record: PolicyRecord, reason: str) -> None:
        """Ends the rollout of a policy that was rejected, if that one is under way."""
        async with self._lock:
            state = self._registry.rollout
            if (state.policy, state.version) == (record.policy, record.version):
                await self._end(reason)

    async def _end(self, reason: str) -> RolloutState | None:
        state = self._registry.rollout
        if not state.is_under_way:
            return None
        return await self._step(state, Stage.PROPOSED, Verdict.NONE, reason)

    async def release(self) -> None:
        """Lets training runs promote again, though what is active was pinned by hand."""
        async with self._lock:
            if self.pin:
                activation = self._registry.activation
                await self._registry.change_rollout(partial(_pin, activation, False))

    async def carry_out(
        self, promote: Promote, *, by_hand: bool, is_watched: bool = False
    ) -> Promotion:
        """Does an activation and what follows from it, see `on_activation`; returns the former.

        That it is pinned, or watched, is stored in one step with it, since a trainer may be killed
        while routers are waited for. It is done to its end, also if whoever asked for it leaves
        meanwhile: what a router refuses would else not be undone.
        """
        following = self._follow(promote, by_hand=by_hand, is_watched=is_watched)
        task = asyncio.create_task(following)
        self._begun.add(task)
        task.add_done_callback(self._note_end)
        return await asyncio.shield(task)

    async def _follow(self, promote: Promote, *, by_hand: bool, is_watched: bool) -> Promotion:
        before = self._before()
        note: ActivationNote | None = _pinned if by_hand else None
        if is_watched:
            note = self.watches.noting()
        try:
            promotion = await promote(note)
        except RoutersRefusedError:
            await self._undo(before)
            raise
        await self.on_activation(
            promotion, by_hand=by_hand, is_watched=is_watched, former=before.state.watch
        )
        return promotion

    def _before(self) -> _Before:
        """Returns what is known before something is activated."""
        registry = self._registry
        return _Before(registry.rollout, registry.activation, registry.present)

    async def _undo(self, before: _Before) -> None:
        """Takes back what was noted with an activation that routers refused.

        What was active before is active again, under another number.
        """
        if self._registry.present == before.policy:
            change = partial(_as_before, before, self._registry.activation)
            await self._registry.change_rollout(change)

    def _note_end(self, task: asyncio.Task[Promotion]) -> None:
        self._begun.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may be there to take it

    async def on_activation(
        self,
        promotion: Promotion,
        *,
        by_hand: bool,
        is_watched: bool = False,
        former: WatchState | None = None,
    ) -> None:
        """Ends what is under way, since another policy was activated.

        Args:
            promotion: what was activated.
            by_hand: somebody pinned it, which is noted.
            is_watched: it is compared with what it replaced, if it is a learned one.
            former: the watch there was before; None for the present one.
        """
        activation = promotion.activation
        text = f"activation {activation} came before it had ended"
        async with self._lock:
            if self._registry.activation != activation:
                return  # what follows from one that came since is for whoever made that
            try:
                await self._end(text)
            except AbortedError:  # another trainer has changed it, which is known here now
                await self._end(text)
            await self._registry.change_rollout(partial(_pin, activation, by_hand))
            with suppress(AbortedError):  # another trainer has ended that watch
                if is_watched and promotion.active is not None:
                    former = former or self.watches.state
                    await self.watches.begin(promotion.active, self._registry.replaced, former)
                else:
                    await self.watches.end(f"{text}{', by hand' if by_hand else ''}")

    async def run(self) -> None:
        """Judges the rollout and the watch under way, for ever."""
        while True:
            await self._clock.sleep(TICK_S)
            if self._registry.rollout.is_running or self.watches.state.is_under_way:
                try:
                    await self._turn.check()
                    await self.look()
                except TurnLostError:
                    continue
                except AbortedError as error:
                    # Another trainer has taken a step, or somebody has pinned something by way of
                    # it: what was judged here is of what was before. The next look goes by that.
                    self._log.info("rollout_step_left_out", reason=str(error))

    async def look(self) -> None:
        """Asks what routers have seen, and takes the steps that follow, if any."""
        await self._mesh.refresh()
        async with self._lock:
            await self.watches.look()
            await self._look()

    async def _look(self) -> None:
        state = self._registry.rollout
        if not state.is_running:
            return
        if state.activation != self._registry.activation:
            await self._meet_another()
            return
        self._tally.take(state, self._mesh.routers)
        if state.stage is Stage.SWITCHBACK and not self._tally.problem:
            state = await self._switch(state)
        found = self._judge(state)
        if found is None:
            return
        if found.verdict is Verdict.WORSE:
            await self._step(state, Stage.REJECTED, found.verdict, found.text)
        elif found.verdict is Verdict.CANNOT_TELL:
            await self._pause(state, found.verdict, found.text)
        elif state.stage is Stage.SHADOW:
            await self._step(state, Stage.CANARY, found.verdict, found.text)
        elif state.stage is Stage.CANARY and self.limits.switch.pairs:
            begun = replace(state, period=1, period_ns=self._clock.wall_ns())
            await self._step(begun, Stage.SWITCHBACK, found.verdict, found.text)
        else:
            promoting = self._promoter.promote(
                state.policy, state.version, state.activation, note=self.watches.noting()
            )
            await self._activate(state, found, promoting)

    async def _meet_another(self) -> None:
        """Ends a rollout beside another activation; goes on with one that is its own last step."""
        active, state = await self._registry.active(), self._registry.rollout
        if not state.is_running or state.activation == self._registry.activation:
            return
        last = Stage.SWITCHBACK if self.limits.switch.pairs else Stage.CANARY
        on_trial = (last, state.policy, state.version)
        is_own = active is not None and on_trial == (
            state.stage,
            active.record.policy,
            active.record.version,
        )
        # Where somebody here has just activated it, they say what follows; by hand, a pin does.
        if active is None or not is_own or self._begun or self.pin:
            text = f"activation {self._registry.activation} came before it had ended"
            await self._step(state, Stage.PROPOSED, Verdict.NONE, text)
            return
        found = Finding(Verdict.BETTER, "the trainer ended while it was activated")
        await self._activate(state, found, self._promoter.confirm(active))

    async def _switch(self, state: RolloutState) -> RolloutState:
        """Judges a pair of periods that is over, and begins the next period when it is time."""
        plan, elapsed_s = self.limits.switch, self._in_period_s(state)
        if state.period % 2 and state.judged < state.period - 1 and elapsed_s >= plan.settle_s:
            # Late ends of the second period have come by now.
            parts = {
                decides_all(state.number, state.version, each): self._tally.period(each)
                for each in (state.period - 2, state.period - 1)
            }
            found = pair_difference(parts[True], parts[False])
            differences = state.differences if found is None else (*state.differences, found)
            state = replace(state, judged=state.period - 1, differences=differences)
            state = await self._registry.keep_rollout(state)
        if elapsed_s >= plan.period_s and judge_switchback(state.differences, plan) is None:
            state = replace(state, period=state.period + 1, period_ns=self._clock.wall_ns())
            self._in_period_s(state)
            state = await self._registry.keep_rollout(state)
        return state

    def _in_period_s(self, state: RolloutState) -> float:
        """Returns for how long the present period of a switchback has lasted, seconds.

        Its stamp tells a trainer that comes back; from then on this process's own clock counts.
        """
        now_s, key = self._clock.monotonic_s(), (state.number, state.period)
        if key != self._period_of:
            told_s = from_ns(self._clock.wall_ns() - state.period_ns)
            elapsed_s = min(max(0.0, told_s), self.limits.switch.period_s)
            self._period_of, self._period_since_s = key, now_s - elapsed_s
        return now_s - self._period_since_s

    def _judge(self, state: RolloutState) -> Finding | None:
        problem = self._tally.problem
        if problem:
            return Finding(Verdict.WORSE, f"{problem}; {self.seen()}")
        limits = self.limits
        if state.stage is Stage.SHADOW:
            found, longest_s = judge_shadow(self._tally.shadow, limits.shadow), limits.shadow_s
        elif state.stage is Stage.SWITCHBACK:
            found, longest_s = judge_switchback(state.differences, limits.switch), limits.canary_s
        else:
            found, longest_s = judge_canary(self._tally.canary, limits.canary), limits.canary_s
        if found is None and self._in_stage_s(state, longest_s) >= longest_s:
            text = f"no verdict within {longest_s:g} s; {self.seen()}"
            return Finding(Verdict.CANNOT_TELL, text)
        return found

    def _in_stage_s(self, state: RolloutState, longest_s: float) -> float:
        """Returns for how long the present stage has been under way, seconds.

        As of a period, its stamp tells a trainer that comes back.
        """
        key, now_s = StageKey(state.number, state.stage), self._clock.monotonic_s()
        if key != self._judged:
            told_s = from_ns(self._clock.wall_ns() - state.stage_ns) if state.stage_ns else 0.0
            self._judged, self._judged_since_s = key, now_s - min(max(0.0, told_s), longest_s)
        return now_s - self._judged_since_s

    async def _activate(
        self, state: RolloutState, found: Finding, promoting: Coroutine[Any, Any, Promotion]
    ) -> None:
        before = self._before()
        try:
            promotion = await promoting
        except RoutersRefusedError as error:
            await self._undo(before)
            await self._step(state, Stage.REJECTED, Verdict.WORSE, str(error))
        except DomainError as error:
            # Somebody was faster, or took the policy away: what they did stands.
            await self._step(state, Stage.PROPOSED, Verdict.NONE, str(error))
        else:
            done = replace(state, activation=promotion.activation)
            await self._step(done, Stage.ACTIVE, found.verdict, found.text)
            if promotion.active is not None:
                await self.watches.begin(
                    promotion.active, self._registry.replaced, before.state.watch
                )

    def _check_open(self, state: RolloutState) -> None:
        """Raises RolloutHeldError if the test had ended before the pause, and could not tell."""
        limits, test = self.limits, ""
        if state.stage is Stage.CANARY:
            if limits.canary.judge(state.carried.effect) is not Judgement.GO_ON:
                test = f"the canary's test is over: {difference(state.carried, limits.canary)}"
        elif state.stage is Stage.SWITCHBACK:
            found = judge_switchback(state.differences, limits.switch)
            if found is not None and found.verdict is Verdict.CANNOT_TELL:
                test = f"the switchback's test is over: {found.text}"
        if test:
            raise RolloutHeldError(
                f"{test}; `tiercel policy promote {state.version} --at-once` uses it all the same, "
                "`tiercel policy rollback` ends its rollout",
                reason="ROLLOUT_TEST_IS_OVER",
            )

    def _stage_number(self) -> float:
        """Returns the stage for people, also of a rollout that another trainer began."""
        state = self._registry.rollout
        return float(state.stage.value if state.is_running else 0)

    async def _pause(self, state: RolloutState, verdict: Verdict, reason: str) -> RolloutState:
        is_canary = state.stage is Stage.CANARY
        carried = self._tally.canary if is_canary else state.carried
        paused = replace(state, is_paused=True, carried=carried)
        return await self._step(paused, state.stage, verdict, f"paused: {reason}".rstrip(": "))

    async def _step(
        self, state: RolloutState, stage: Stage, verdict: Verdict, reason: str
    ) -> RolloutState:
        """Takes a step and tells it to everybody."""
        reason = cut(reason, _LONGEST_REASON) or "by hand"
        is_over = stage not in IN_ROLLOUT
        after = replace(
            state, stage=stage, reason=reason, is_paused=state.is_paused and not is_over
        )
        now_ns, present = self._clock.wall_ns(), self._registry.rollout
        if (after.number, stage) != (present.number, present.stage):
            after = replace(after, stage_ns=now_ns)
        step = RolloutStep(now_ns, stage, verdict, reason)
        after = await self._registry.keep_rollout(after, step)
        name = "paused" if after.is_paused else stage.name.lower()
        word = verdict.name.lower()
        log = self._log.warning if verdict is Verdict.WORSE else self._log.info
        facts: dict[str, str | int] = {
            "rollout": after.number,
            "policy": after.policy,
            "policy_version": after.version,
            "stage": name,
            "verdict": word,
            "reason": reason,
        }
        log("rollout_step", **facts)
        self._metrics.rollout_steps.labels(name, word).inc()
        self._telemetry.emit(
            self._telemetry.begin(None, STEP_SPAN),
            STEP_SPAN,
            start_ns=after.begin_ns,
            end_ns=now_ns,
            attributes={f"tiercel.{key}": value for key, value in facts.items()},
            force=True,
        )
        return after


def _pin(activation: int, by_hand: bool, state: RolloutState) -> RolloutState:
    """Returns a state in which an activation is pinned or not; a later pin stays."""
    if state.pinned_activation > activation:
        return state
    return replace(state, pinned_activation=activation if by_hand else -1)


def _as_before(before: _Before, activation: int, state: RolloutState) -> RolloutState:
    """Returns a state in which pin, watch and anchor are those before an activation."""
    was, pinned, watch = before.state, state.pinned_activation, state.watch
    if was.pinned_activation == before.activation:
        pinned = activation
    if watch.activation != was.watch.activation:
        watch = was.watch
    return replace(
        state,
        pinned_activation=pinned,
        watch=watch,
        anchor=was.anchor,
        anchor_version=was.anchor_version,
    )


def _pinned(state: RolloutState, active: ActivePolicy, _replaced: tuple[str, str]) -> RolloutState:
    """Returns a state in which what has become active is pinned, and is the gate's anchor."""
    record = active.record if active.snapshot else PolicyRecord.built_in("")
    return replace(
        state,
        pinned_activation=active.activation,
        anchor=record.policy,
        anchor_version=record.version,
    )


def _no_rollout(kind: str) -> NoRolloutError:
    return NoRolloutError(f"no rollout is {kind}", reason="NO_ROLLOUT")
