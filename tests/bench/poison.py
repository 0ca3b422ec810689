"""Poison by stage: which stage of a rollout stops a bad policy by itself, how soon, at what cost.

A router in virtual time serves Poisson traffic on one device that three tiers share, safety net on,
policy `price`. Each bad policy is put into a stage with all gates before it left out. What stops it
is the real thing: the router's trial and the trainer's verdicts, on real reports.

Run: python -m tests.bench.poison [--rate-rps 40] [--markdown FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from router.dqn.snapshot import Snapshot, SnapshotError, Weights, save_snapshot, zero_weights
from router.features import FEATURE_COUNT, FEATURES, SCHEMA
from router.fleet import EndpointProtocol
from router.profile import LatencyProfile, TierProfile
from services.common.clock import SystemClock
from services.common.errors import DomainError
from services.common.log import get_logger
from services.common.tiers.answer import TierChunk
from services.router_inference.job import Arm, Job, Outcome
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trial import Trial, Tried
from services.router_inference.policy.watch import Watched
from services.router_inference.view.convert import trial_report
from services.router_inference.workers.siblings import NoSiblings
from services.trainer.app import rollout_limits, watch_plan
from services.trainer.convert import trial_seen
from services.trainer.rollout_verdicts import TrialSeen, judge_canary, judge_shadow
from services.trainer.settings import TrainerSettings
from tests.fakes.virtual_time import run_virtual
from tests.unit.services.router_inference.parts import FakePool, FakeTier, Rig, make_rig

PROFILE = LatencyProfile(
    "shared",
    "assumed",
    {
        "small": TierProfile(0.002, 0.0004, 0.0, max_batch=64),
        "medium": TierProfile(0.004, 0.001, 0.0, max_batch=64),
        "large": TierProfile(0.010, 0.004, 0.0, max_batch=64),
    },
)
TOKENS = 8
SHARE = 0.1
LOOK_S = 0.5
LONGEST_S = 120.0
BEFORE_S = 60.0
"""For which the policy before has served when another one becomes active."""
NAMES = tuple(feature.name for feature in FEATURES)


@dataclass
class SharedTier(FakeTier):
    """Tiers that take turns on one device: a token takes a cycle of all that are at work."""

    at_work: dict[str, int] = field(default_factory=dict)

    async def generate(
        self, model: str, prompt: str, max_output_tokens: int, **options: Any
    ) -> AsyncGenerator[TierChunk, None]:
        """Answers with the same number of tokens always."""
        self.at_work[model] = self.at_work.get(model, 0) + 1
        try:
            for _ in range(TOKENS):
                await asyncio.sleep(self._cycle_s())
                yield TierChunk("a", 1, False, "")
            yield TierChunk("", 0, True, "stop")
        finally:
            self.at_work[model] -= 1

    def _cycle_s(self) -> float:
        working = ((PROFILE.tiers[model], n) for model, n in self.at_work.items() if n)
        return sum(tier.step_s + tier.per_sequence_s * n for tier, n in working)


class SharedPool(FakePool):
    """Hands out one shared device by address."""

    def get(self, address: str, protocol: EndpointProtocol = EndpointProtocol.TRITON) -> Any:
        """Returns it."""
        return self.tiers.setdefault(address, SharedTier(address))


def _weights(change: Callable[[Weights], None], hidden: int = 8) -> bytes:
    weights = zero_weights(FEATURE_COUNT, hidden)
    change(weights)
    return save_snapshot(Snapshot(weights, SCHEMA, NAMES))


def _linear(weight: float, feature: str = "quality") -> bytes:
    """Returns `price` plus a weight times a feature."""

    def change(weights: Weights) -> None:
        weights.w3_P[8 + NAMES.index(feature)] = weight

    return _weights(change)


def _random(seed: int, scale: float = 1.0) -> Callable[[], bytes]:
    def made() -> bytes:
        rng = np.random.default_rng(seed)

        def change(weights: Weights) -> None:
            for layer in weights[:-1]:
                layer[...] = rng.normal(0.0, scale, layer.shape)

        return _weights(change)

    return made


def _overflowing() -> bytes:
    def change(weights: Weights) -> None:
        weights.b1_H[:], weights.w2_GH[:], weights.w3_P[:8] = 3e38, 2.0, 1.0

    return _weights(change)


def _not_a_number() -> bytes:
    def change(weights: Weights) -> None:
        weights.w3_P[:] = np.nan

    return _weights(change)


SLOW = "slow to decide"
POISON: dict[str, Callable[[], bytes]] = {
    "random weights, seed 1": _random(1),
    "random weights, seed 2": _random(2),
    "random weights, seed 3": _random(3),
    "huge weights": _random(1, 1e6),
    "flipped signs": lambda: _linear(-2.0, "price_gap"),
    "always large": lambda: _linear(50.0),
    "always small": lambda: _linear(-50.0),
    "a little too greedy": lambda: _linear(0.3),
    "scores overflow": _overflowing,
    "weights are NaN": _not_a_number,
    "another schema": lambda: save_snapshot(
        Snapshot(zero_weights(FEATURE_COUNT, 8), "tiercel-features-0", NAMES)
    ),
    SLOW: lambda: _weights(lambda _: None, hidden=1_024),
    "as `price` (no poison)": lambda: _weights(lambda _: None),
}


class Stopped(NamedTuple):
    """How a stage ended.

    Attributes:
        how: what stopped it; empty if nothing did.
        after_s: when, virtual seconds.
        requests: that the policy decided, or was asked about.
        missed: of those that it decided.
        lost: value that those lost, in all, beside as many of the control.
    """

    how: str
    after_s: float = 0.0
    requests: int = 0
    missed: int = 0
    lost: float = 0.0


def tried(snapshot: bytes, *, is_canary: bool) -> Tried:
    """Returns what a trainer would send."""
    digest = hashlib.sha256(snapshot).digest()
    promoted = Promoted("dqn", "poison", snapshot, digest, 0)
    return Tried(1, is_canary, SHARE if is_canary else 0.0, promoted)


async def serve(rig: Rig, rate_rps: float, jobs: list[Job]) -> None:
    """Sends requests for ever."""
    rng = random.Random(1)
    tasks: set[asyncio.Task[None]] = set()

    async def one(job: Job) -> None:
        with suppress(DomainError):
            await rig.answer(job)

    while True:
        await asyncio.sleep(rng.expovariate(rate_rps))
        jobs.append(rig.job(max_output_tokens=TOKENS))
        task = asyncio.create_task(one(jobs[-1]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def report(rig: Rig) -> TrialSeen:
    """Returns what a router reports, as the trainer reads it."""
    found = rig.core.trial.told()
    assert found is not None
    return trial_seen(trial_report(found))


async def _stage(snapshot: bytes, rate_rps: float, *, is_canary: bool) -> Stopped:
    rig = make_rig(policy="price", profile=PROFILE, pool=SharedPool())
    jobs: list[Job] = []
    work = [serve(rig, rate_rps, jobs), rig.core.trial.run()]
    running = [asyncio.create_task(each) for each in work]
    await asyncio.sleep(5.0)
    limits, begin_s = rollout_limits(TrainerSettings()), rig.clock.monotonic_s()
    rig.core.trial.take(tried(snapshot, is_canary=is_canary))
    how, elapsed_s = "", 0.0
    while not how and elapsed_s < LONGEST_S:
        await asyncio.sleep(LOOK_S)
        elapsed_s = rig.clock.monotonic_s() - begin_s
        seen = report(rig)
        if is_canary:
            found = judge_canary(seen.canary, limits.canary)
        else:
            found = judge_shadow(seen.shadow, limits.shadow)
        if seen.problem:
            how = f"router: {seen.problem}"
        elif found is not None:
            how = f"{found.verdict.name.lower().replace('_', ' ')}: {found.text.split(';')[0]}"
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    seen = report(rig)
    if not is_canary:
        return Stopped(how, elapsed_s, round(seen.shadow.decision_count))
    canary = [job for job in jobs if job.arm is Arm.CANARY and job.outcome is not None]
    missed = sum(job.outcome is not Outcome.ON_TIME for job in canary)
    counts = seen.canary
    means = counts.control_value_sum / max(1.0, counts.control_count)
    lost = means * counts.request_count - counts.value_sum
    return Stopped(how, elapsed_s, len(canary), missed, lost)


async def _active(snapshot: bytes, rate_rps: float) -> Stopped:
    rig = make_rig(policy="price", profile=PROFILE, pool=SharedPool())
    jobs: list[Job] = []
    running = [
        asyncio.create_task(each) for each in (serve(rig, rate_rps, jobs), rig.core.watch.run())
    ]
    await asyncio.sleep(BEFORE_S)
    begun, begin_s = len(jobs), rig.clock.monotonic_s()
    slot, watch = rig.core.slot, rig.core.watch
    slot.promote(Promoted("dqn", "poison", snapshot, b"", 1))
    watch.take(Watched(1, watch_plan(TrainerSettings()).limits, 2.0 * LONGEST_S))
    elapsed_s = 0.0
    while not slot.refusal and elapsed_s < LONGEST_S:
        await asyncio.sleep(LOOK_S)
        elapsed_s = rig.clock.monotonic_s() - begin_s
    for each in running:
        each.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    decided = [job for job in jobs[begun:] if job.outcome is not None]
    missed = sum(job.outcome is not Outcome.ON_TIME for job in decided)
    how = f"router: {slot.refusal}" if slot.refusal else ""
    return Stopped(how, elapsed_s, len(decided), missed)


def when_active(snapshot: bytes, rate_rps: float) -> Stopped:
    """Returns how a policy fares once it decides everything, all gates before left out."""
    return run_virtual(_active(snapshot, rate_rps))


def in_shadow(snapshot: bytes, rate_rps: float) -> Stopped:
    """Returns how a policy fares in shadow, all gates before it left out."""
    return run_virtual(_stage(snapshot, rate_rps, is_canary=False))


def as_canary(snapshot: bytes, rate_rps: float) -> Stopped:
    """Returns how a policy fares as a canary, all gates before it left out."""
    return run_virtual(_stage(snapshot, rate_rps, is_canary=True))


def in_shadow_by_the_clock(snapshot: bytes, rate_rps: float, times: float = 1.0) -> Stopped:
    """Returns how a policy fares in shadow where real time is taken, which virtual time is not.

    Args:
        snapshot: the policy.
        rate_rps: requests per second.
        times: by how much slower than this machine the clock makes it look.
    """

    async def asked() -> Stopped:
        rig = make_rig(policy="price", profile=PROFILE, pool=SharedPool())
        trial = Trial(
            slot=rig.core.slot,
            explanations=rig.core.explanations,
            watch=rig.core.watch,
            siblings=NoSiblings(),
            bind=rig.app._machine_code.bind,
            limits=rig.core.trial.limits,
            chance=random.Random(7).random,
            metrics=rig.app._metrics,
            clock=_RealTime(times),
            log=get_logger("poison"),
        )
        trial.take(tried(snapshot, is_canary=False))
        trial._began_s = 0.0
        serving = asyncio.create_task(serve(rig, rate_rps, []))
        await asyncio.sleep(10.0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        limits = rollout_limits(TrainerSettings()).shadow
        trial.work(float("inf"))
        told = trial.told()
        assert told is not None
        found = judge_shadow(trial_seen(trial_report(told)).shadow, limits)
        how = "" if found is None else f"{found.verdict.name.lower()}: {found.text.split(';')[0]}"
        return Stopped(how, 0.0, limits.decisions)

    return run_virtual(asked())


class _RealTime(SystemClock):
    """The machine's clock, inside virtual time, so many times as fast."""

    def __init__(self, times: float) -> None:
        self._times = times

    def monotonic_s(self) -> float:
        """Returns the time that went by, times the factor."""
        return self._times * super().monotonic_s()


def line(name: str, rate_rps: float) -> str:
    """Returns a row of the table."""
    try:
        snapshot = POISON[name]()
    except SnapshotError as error:
        return f"| {name} | cannot be written: {error.reason} | - | - | - |"
    if name == SLOW:
        # Virtual time stands still while a decision is taken.
        shadow = in_shadow_by_the_clock(snapshot, rate_rps)
        return f"| {name} | {shadow.how} ({shadow.requests} decisions) | not shown here | - | - |"
    shadow = in_shadow(snapshot, rate_rps)
    canary = as_canary(snapshot, rate_rps)
    cost = f"{canary.requests} requests, {canary.missed} missed, value {-canary.lost:+.1f}"
    active = when_active(snapshot, rate_rps)
    return (
        f"| {name} | {shadow.how or 'nothing'} ({shadow.requests} decisions) "
        f"| {canary.how or 'nothing'} after {canary.after_s:.1f} s | {cost} "
        f"| {active.how or 'nothing'} after {active.after_s:.1f} s, {active.requests} requests, "
        f"{active.missed} missed |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate-rps", type=float, default=40.0)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    rows = [
        "| policy | in shadow | as a canary | cost as a canary | once active |",
        "|---|---|---|---|---|",
    ]
    for name in POISON:
        rows.append(line(name, options.rate_rps))
        print(rows[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
