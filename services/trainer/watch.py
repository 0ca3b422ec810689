"""The watch over a policy that has become active: it stays, or the mesh goes back.

Routers count, and go back by themselves (`services/router_inference/policy/watch.py`); here their
counts are added up and judged by the same rule (`router/watch.py`), and what one router found holds
for the mesh. How a watch stands is kept beside the rollout, so a trainer that dies and comes back
goes on with it. Every step is an event: a line in the log, a count, a span, and an entry in the
history of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.watch import Watcher, WatchLimits
from services.common.clock import Clock
from services.common.errors import DomainError, cut
from services.common.log import Logger
from services.common.telemetry import Telemetry
from services.common.times import from_ns, to_ns
from services.trainer.mesh_view import MeshView
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import RolloutState, RolloutStep, Stage, WatchStage, WatchState
from services.trainer.registry import ActivationNote, ActivePolicy, PolicyRegistry
from services.trainer.rollout_verdicts import Verdict
from services.trainer.watch_seen import WatchTally

STEP_SPAN = "tiercel.watch.step"
_LONGEST_REASON = 1_000
_VERDICTS = {
    WatchStage.UNDER_WAY: Verdict.NONE,
    WatchStage.KEPT: Verdict.BETTER,
    WatchStage.WENT_BACK: Verdict.WORSE,
    WatchStage.ENDED: Verdict.NONE,
}


@dataclass(frozen=True, slots=True)
class WatchPlan:
    """How policies are watched.

    Attributes:
        limits: what they must keep to.
        watch_s: for how long, seconds; 0 = never.
    """

    limits: WatchLimits
    watch_s: float


class Watches:
    """Begins, judges and ends watches, one at a time; its caller lets one call in at a time."""

    def __init__(
        self,
        *,
        registry: PolicyRegistry,
        mesh: MeshView,
        plan: WatchPlan,
        telemetry: Telemetry,
        metrics: TrainerMetrics,
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes its parts."""
        self._registry = registry
        self._mesh = mesh
        self.plan = plan
        self._telemetry = telemetry
        self._metrics = metrics
        self._clock = clock
        self._log = log
        self._tally = WatchTally()
        self._watcher = Watcher(plan.limits)
        self._watched = 0
        self._due_of, self._due_s = 0, 0.0
        metrics.watch_under_way.set_function(lambda: float(self.state.is_under_way))

    @property
    def state(self) -> WatchState:
        """The watch under way, else the last one."""
        return self._registry.rollout.watch

    def left_s(self, state: WatchState) -> float:
        """Returns how long a watch lasts still, seconds.

        Its stamps tell a trainer that comes back. From then on this process's own clock counts, so
        that a wall clock that is set neither ends a watch unseen nor draws it out.
        """
        now_s = self._clock.monotonic_s()
        if state.activation != self._due_of:
            left_s = from_ns(state.end_ns - self._clock.wall_ns())
            whole_s = from_ns(state.end_ns - state.begin_ns)
            self._due_of, self._due_s = state.activation, now_s + min(left_s, whole_s)
        return max(0.0, self._due_s - now_s)

    @property
    def _is_heard(self) -> bool:
        """True if routers are heard now, or never are; else one may have gone back unheard."""
        mesh = self._mesh
        return not mesh.has_monitor or (mesh.is_fresh and bool(mesh.routers))

    def seen(self) -> str:
        """Returns what was seen so far, for people; empty if nothing is watched."""
        if not self.state.is_under_way:
            return ""
        self._hear(self.state)  # also where another trainer judges it
        return str(self._tally)

    def noting(self) -> ActivationNote:
        """Returns what is noted in one step with an activation: that it is watched from then on.

        Whoever activates it calls `begin` afterwards, which tells of it. A trainer that is killed
        before that leaves a policy that is watched all the same.
        """
        now_ns = self._clock.wall_ns()

        def noted(
            state: RolloutState, active: ActivePolicy, replaced: tuple[str, str]
        ) -> RolloutState:
            watch = self._watch_over(active, replaced, now_ns)
            return state if watch is None else replace(state, watch=watch)

        return noted

    async def begin(
        self, active: ActivePolicy, replaced: tuple[str, str], former: WatchState
    ) -> None:
        """Watches a learned policy that has become active; others need none.

        Args:
            active: what has become active.
            replaced: name and version of what it replaced; empty for the routers' settings.
            former: the watch that there was before it became active.
        """
        text = f"activation {active.activation} came before its time was over"
        if self.state.activation != active.activation:
            await self.end(text)
            watch = self._watch_over(active, replaced, self._clock.wall_ns())
            if watch is not None:
                await self._keep(watch, replaces=self.state)
            return
        # It was noted with the activation, in the place of the one before, and may be over by now.
        told = [self.state] if self.state.is_under_way else []
        if former.is_under_way and former.activation != active.activation:
            told.insert(0, replace(former, stage=WatchStage.ENDED, reason=text))
        for each in told:
            await self._registry.note_step(each.policy, each.version, self._as_step(each))
            self._tell(each)

    def _watch_over(
        self, active: ActivePolicy, replaced: tuple[str, str], now_ns: int
    ) -> WatchState | None:
        """Returns a watch that begins, None over a policy without a snapshot."""
        if not active.snapshot or not self.plan.watch_s:
            return None
        name = " ".join(replaced).strip() or "the policy of the routers' settings"
        return WatchState(
            activation=active.activation,
            policy=active.record.policy,
            version=active.record.version,
            replaced=replaced[0],
            replaced_version=replaced[1],
            stage=WatchStage.UNDER_WAY,
            reason=f"it is compared with {name} for {self.plan.watch_s:g} s",
            begin_ns=now_ns,
            end_ns=now_ns + to_ns(self.plan.watch_s),
        )

    async def end(self, reason: str) -> None:
        """Ends the watch under way, if any, without a verdict."""
        if self.state.is_under_way:
            await self._step(self.state, WatchStage.ENDED, reason)

    async def look(self) -> None:
        """Judges what routers have reported, and takes the step that follows, if any."""
        state = self.state
        if not state.is_under_way:
            return
        if state.activation != self._registry.activation:
            text = f"activation {self._registry.activation} came before its time was over"
            await self.end(text)
            return
        if state.activation != self._watched:
            self._watched, self._watcher = state.activation, Watcher(self.plan.limits)
        self._hear(state)
        problem = self._tally.problem
        if not problem:
            broken = self._watcher.look(self._tally.before, self._tally.after)
            problem = f"{broken.reason}: {broken.detail}" if broken is not None else ""
        if problem:
            await self._go_back(state, f"{problem}; {self._tally}")
        elif not self.left_s(state) and self._is_heard:
            await self._step(state, WatchStage.KEPT, f"it broke no limit; {self._tally}")

    def _hear(self, state: WatchState) -> None:
        routers = self._mesh.routers
        reports = (((each.router_id, each.epoch), each.watch) for each in routers)
        self._tally.take(state.activation, reports)

    async def _go_back(self, state: WatchState, reason: str) -> None:
        reason = cut(reason, _LONGEST_REASON)
        active = await self._registry.active()
        if active is None or active.activation != state.activation:
            return  # somebody was faster; the next look ends the watch
        try:
            await self._registry.withdraw(active, reason)
        except DomainError as error:
            self._log.warning("watch_raced", reason=str(error))
            return
        await self._step(state, WatchStage.WENT_BACK, reason)

    async def _step(self, state: WatchState, stage: WatchStage, reason: str) -> None:
        """Takes a step and tells it to everybody."""
        after = replace(state, stage=stage, reason=cut(reason, _LONGEST_REASON))
        await self._keep(after, replaces=state)

    async def _keep(self, watch: WatchState, *, replaces: WatchState) -> None:
        await self._registry.keep_watch(watch, self._as_step(watch), replaces=replaces)
        if watch.is_under_way:
            self.left_s(watch)
        self._tell(watch)

    def _as_step(self, watch: WatchState) -> RolloutStep:
        """Returns how a watch stands as a step of its policy."""
        stage = watch.stage
        return RolloutStep(
            self._clock.wall_ns(), _policy_stage(stage), _VERDICTS[stage], watch.reason
        )

    def _tell(self, after: WatchState) -> None:
        """Tells everybody how a watch stands."""
        name, reason = after.stage.name.lower(), after.reason
        facts: dict[str, str | int] = {
            "activation": after.activation,
            "policy": after.policy,
            "policy_version": after.version,
            "stage": name,
            "reason": reason,
        }
        went_back = after.stage is WatchStage.WENT_BACK
        log = self._log.warning if went_back else self._log.info
        log("watch_step", **facts)
        self._metrics.watch_steps.labels(name).inc()
        self._telemetry.emit(
            self._telemetry.begin(None, STEP_SPAN),
            STEP_SPAN,
            start_ns=after.begin_ns,
            end_ns=self._clock.wall_ns(),
            attributes={f"tiercel.{key}": value for key, value in facts.items()},
            force=True,
        )


def _policy_stage(stage: WatchStage) -> Stage:
    """Returns where the policy stands after a step."""
    if stage is WatchStage.WENT_BACK:
        return Stage.REJECTED
    return Stage.PROPOSED if stage is WatchStage.ENDED else Stage.ACTIVE
