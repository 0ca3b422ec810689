"""Rollouts over a registry in memory, and what routers of the test's report of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from router.sequential import Arms, Plan
from router.watch import WatchLimits
from services.common.log import get_logger
from services.common.state.shared_state import MemorySharedState
from services.common.telemetry import Telemetry
from services.trainer.gate import Gate
from services.trainer.mesh_view import RouterSeen
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import RolloutState, Stage
from services.trainer.promotion import Promoter, Promotion
from services.trainer.registry import PolicyRegistry
from services.trainer.rollout import RolloutLimits, Rollouts
from services.trainer.rollout_verdicts import (
    CanarySeen,
    ShadowLimits,
    ShadowSeen,
    SwitchPlan,
    TrialSeen,
)
from services.trainer.turn import ROLLOUT_LEASE_NAME, Turn
from services.trainer.watch import Watches, WatchPlan
from tests.unit.services.trainer.test_gate import SPEC
from tests.unit.services.trainer.test_registry import Bench as RegistryBench

LIMITS = RolloutLimits(
    shadow=ShadowLimits(decisions=100, decision_s=0.002, value_loss=0.1),
    canary=Plan(alpha=0.05, smallest=0.1, reach=2.0),
    switch=SwitchPlan(pairs=0, period_s=30.0, alpha=0.05),
    shadow_s=60.0,
    canary_s=600.0,
)
WATCHED = WatchPlan(WatchLimits(0.05, 0.02), 600.0)
SAFE = ShadowSeen(
    decision_count=60.0, same_tier_count=50.0, top_tier_count=30.0, active_top_tier_count=30.0
)


class Mesh:
    """Routers that report what a test tells them to."""

    def __init__(self) -> None:
        self.routers: tuple[RouterSeen, ...] = ()
        self.has_monitor = True
        self.is_fresh = True
        self.activation = 0
        self.refusal = ""

    async def refresh(self) -> bool:
        """Answers."""
        return True

    async def watch(self, interval_s: float) -> AsyncIterator[tuple[RouterSeen, ...]]:
        """Yields a router that has taken in whatever was promoted."""
        yield (RouterSeen("a", 1, self.activation, self.refusal),)

    def report(self, *trials: TrialSeen) -> None:
        """Has each of some routers report a trial."""
        names = "abcdef"
        self.routers = tuple(
            RouterSeen(name, 1, 0, "", trial) for name, trial in zip(names, trials, strict=False)
        )


class Bench:
    """Rollouts over a registry in memory and routers of the test's."""

    def __init__(self, over: RegistryBench | None = None, limits: RolloutLimits = LIMITS) -> None:
        self.limits = limits
        self.over = over or RegistryBench()
        self.clock, self.log = self.over.clock, get_logger("test")
        self.mesh, self.prometheus = Mesh(), CollectorRegistry()
        self.registry = self.over.registry
        self.rollouts = self.another(self.registry)

    def another(
        self, registry: PolicyRegistry, prometheus: CollectorRegistry | None = None
    ) -> Rollouts:
        """Returns rollouts over a registry, as another or a restarted trainer has."""
        mesh: Any = self.mesh
        self.promoter = Promoter(
            registry=registry, mesh=mesh, clock=self.clock, log=self.log, wait_s=0.0
        )
        own = self.prometheus if registry is self.registry else CollectorRegistry()
        metrics = TrainerMetrics(prometheus or own)
        telemetry = Telemetry(None, random.Random(1))
        return Rollouts(
            watches=Watches(
                registry=registry,
                mesh=mesh,
                plan=WATCHED,
                telemetry=telemetry,
                metrics=metrics,
                clock=self.clock,
                log=self.log,
            ),
            registry=registry,
            promoter=self.promoter,
            mesh=mesh,
            turn=Turn(
                store=MemorySharedState(self.clock),
                owner="this",
                clock=self.clock,
                log=self.log,
                name=ROLLOUT_LEASE_NAME,
            ),
            limits=self.limits,
            telemetry=telemetry,
            metrics=metrics,
            clock=self.clock,
            log=self.log,
        )

    async def begin(self) -> RolloutState:
        """Publishes a snapshot and begins its rollout."""
        version = await self.over.publish(1)
        record, _ = await self.registry.get("dqn", version)
        return await self.rollouts.begin(record, "passed", by_hand=True)

    async def as_canary(self) -> RolloutState:
        """Takes a snapshot to its second stage."""
        state = await self.begin()
        self.mesh.report(shadow(state, SAFE), shadow(state, SAFE))
        await self.rollouts.look()
        assert self.registry.rollout.stage is Stage.CANARY
        return self.registry.rollout

    async def activate(
        self, policy: str, version: str = "", *, by_hand: bool, is_watched: bool = False
    ) -> Promotion:
        """Activates a policy as a call or the gate does."""
        promoter = self.promoter
        return await self.rollouts.carry_out(
            lambda note: promoter.promote(policy, version, note=note),
            by_hand=by_hand,
            is_watched=is_watched,
        )

    async def restarted(self) -> Rollouts:
        """Returns what another trainer finds in the store, or this one when it comes back."""
        registry = self.over.another()
        await registry.policies()
        self.rollouts = self.another(registry)
        self.registry = registry
        return self.rollouts

    def gate(self, evaluator: Any, rollout: Any = "never") -> Gate:
        """Returns a gate; promotions are active at once unless the setting says otherwise."""
        return Gate(
            evaluator=evaluator,
            spec=SPEC,
            margin=0.005,
            seeds=[1],
            timeout_s=1.0,
            promoter=self.promoter,
            rollouts=self.rollouts,
            rollout=rollout,
            log=self.log,
            metrics=TrainerMetrics(CollectorRegistry()),
        )

    async def stage(self) -> tuple[Stage, str]:
        """Returns where the policy stands, and why it was rejected."""
        state = self.registry.rollout
        record, _ = await self.registry.get(state.policy, state.version)
        return record.stage, record.rejection

    def steps(self, stage: str, verdict: str) -> float:
        """Returns how many steps were counted."""
        labels = {"stage": stage, "verdict": verdict}
        name = "tiercel_trainer_rollout_steps_total"
        return self.prometheus.get_sample_value(name, labels) or 0.0


def shadow(state: RolloutState, seen: ShadowSeen) -> TrialSeen:
    """Returns a report of the first stage."""
    return TrialSeen(state.number, False, shadow=seen)


def canary(state: RolloutState, effect: float, count: int = 3_000) -> TrialSeen:
    """Returns a report of the second stage."""
    arms, rng = Arms(-1.0, 1.0), np.random.default_rng(1)
    for drawn, value in zip(rng.random(count) < 0.5, rng.uniform(0.5, 0.7, count), strict=True):
        arms.add(bool(drawn), float(value + effect * drawn))
    sums = arms.effect
    seen = CanarySeen(
        request_count=count / 2,
        control_count=count / 2,
        effect_count=sums.drawn,
        effect_total=sums.total,
        effect_square=sums.square,
    )
    return TrialSeen(state.number, True, canary=seen)


def never_confirmed(bench: Bench) -> asyncio.Event:
    """Has routers never answer what is activated; returns what tells that they are waited for."""
    at_it = asyncio.Event()

    async def confirm(active: Any) -> Promotion:
        at_it.set()
        await asyncio.Event().wait()
        raise AssertionError

    bench.promoter.confirm = confirm  # type: ignore[method-assign]
    return at_it
