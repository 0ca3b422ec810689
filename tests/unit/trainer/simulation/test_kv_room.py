"""Room for keys and values: the engine, a slow reference and the paced tiers account alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paced_engine import Control, Job, PacedEngine, TierTiming
from router.profile import LatencyProfile, TierProfile
from router.safety import SafetyLimits
from tests.unit.router import fleets
from tests.unit.trainer.simulation.reference_device import Asked, Device
from tests.unit.trainer.simulation.settings import config, requests, spec, traffic
from trainer.simulation import loop, state
from trainer.simulation.simulate import FleetEvent, SimulationConfig, make_world, simulate
from trainer.simulation.workload import Workload

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

STATUS = {"answered": state.ANSWERED, "cancelled": state.CANCELLED}
STATUS |= {"refused": state.REFUSED, "failed": state.FAILED}


def profile(room: int | None, **changes: Any) -> LatencyProfile:
    """Returns the test profile with this room in every tier."""
    tiers = {
        name: replace(tier, max_kv_tokens=room, **changes)
        for name, tier in fleets.profile().tiers.items()
    }
    return LatencyProfile("test", "assumed", tiers)


def limited(room: int | None, devices: int = 1, **changes: Any) -> SimulationConfig:
    """Returns a fleet whose devices really have this room."""
    return config(devices, profiles={"": profile(room, max_batch=8)}, **changes)


def random_requests(rng: np.random.Generator, count: int, slack_s: float) -> Workload:
    """Returns bursty arrivals of mixed sizes, some larger than a small room."""
    arrival_N = np.cumsum(rng.exponential(0.004, count) * (rng.random(count) < 0.6)) + 0.001
    arrival_N += 1e-7 * np.arange(count)  # no two at once: their order would be a convention
    return Workload(
        arrival_N,
        np.zeros(count, np.int64),
        rng.integers(1, 120, count).astype(np.float64),
        rng.integers(1, 30, count),
        rng.uniform(0.2, 1.0, count) * slack_s,
        float(arrival_N[-1]) + 1.0,
    )


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    room=st.sampled_from([60, 130, 400, None]),
    slack_s=st.sampled_from([0.3, 1.5, 100.0]),
    lost=st.booleans(),
)
def test_the_engine_agrees_with_a_plain_reference(
    seed: int, room: int | None, slack_s: float, lost: bool
) -> None:
    """On random work over three tiers every request ends alike, and no room is ever overdrawn."""
    rng = np.random.default_rng(seed)
    offered = random_requests(rng, 60, slack_s)
    tier_N = rng.integers(0, 3, len(offered))
    lost_s = float(rng.uniform(0.0, offered.arrival_N[-1] + 0.1)) if lost else math.inf
    events = (FleetEvent(lost_s, 0, "lost"),) if lost else ()
    world = make_world(limited(room, events=events), offered, seed)
    peak_C = np.zeros(3)
    while (i := loop.advance(world)) >= 0:
        loop.apply(world, i, int(tier_N[i]))
        peak_C = np.maximum(peak_C, world.candidates["kv_used"])
        held = world.requests["prompt"] + world.requests["output"]
        running = world.requests["status"] == state.RUNNING
        for c in range(3):
            own = running & (world.requests["candidate"] == c)
            assert world.candidates["kv_used"][c] == held[own].sum()
    rows = zip(offered.arrival_N, offered.prompt_N, offered.output_N, offered.slack_N, strict=True)
    expected = [
        Asked(float(a), int(p), int(o), float(a + s), int(t))
        for (a, p, o, s), t in zip(rows, tier_N, strict=True)
    ]
    device = Device([profile(room, max_batch=8).tiers[tier] for tier in fleets.TIERS])
    device.run(expected, lost_s)
    ended = world.requests
    assert ended["status"].tolist() == [STATUS[each.status] for each in expected]
    np.testing.assert_allclose(ended["end_s"], [each.end_s for each in expected], rtol=1e-12)
    assert (world.candidates["kv_used"] == 0.0).all()
    for tier, peak in zip(device.tiers, peak_C, strict=True):
        assert peak <= tier.peak <= tier.room


def test_a_request_waits_until_its_keys_and_values_fit() -> None:
    """With room for one of two, the second starts when the first has left; without, beside it."""
    offered = requests((1.0, 100, 5), (1.0001, 100, 5))
    one = simulate(limited(150), offered, spec("static-large"))
    both = simulate(limited(None), offered, spec("static-large"))
    large = fleets.profile().tiers["large"]
    alone_s = large.unloaded_latency_s(100, 5)
    assert one.latency_N[0] == pytest.approx(alone_s)
    assert one.latency_N[1] == pytest.approx(2 * alone_s - 0.0001)
    assert both.latency_N[1] < one.latency_N[1]


def test_a_small_request_does_not_overtake_one_that_waits_for_room() -> None:
    """The queue is served in order: otherwise large requests could wait for ever."""
    offered = requests((1.0, 100, 20), (1.001, 100, 2), (1.002, 10, 2))
    result = simulate(limited(150), offered, spec("static-large"))
    end_N = offered.arrival_N + result.latency_N
    assert end_N[2] > end_N[0]
    assert end_N[2] == pytest.approx(end_N[1])


def test_a_request_larger_than_the_room_is_refused() -> None:
    """It ends at once and unrewarded; the next one is served."""
    result = simulate(limited(150), requests((1.0, 140, 20), (1.1, 100, 5)), spec("static-large"))
    assert result.status_N.tolist() == [state.REFUSED, state.ANSWERED]
    assert result.latency_N[0] == 0.0
    assert result.reward_N[0] == 0.0


def test_a_rescue_gives_the_room_back() -> None:
    """A request moved from a slow tier to a smaller one holds room there and there alone."""
    limits = SafetyLimits(optimism=1.0, margin=1.2)
    events = (FleetEvent(0.5, 0, "slow", 40.0),)
    offered = requests((1.0, 100, 8), (1.39, 1, 1), slack_s=0.4)
    world = make_world(limited(150, 2, safety=True, events=events, limits=limits), offered, 0)
    loop.apply(world, loop.advance(world), 2)  # large on the slow device
    assert world.candidates["kv_used"].tolist() == [0, 0, 108, 0, 0, 0]
    loop.apply(world, loop.advance(world), 0)
    assert world.clock[0]["rescues"] == 1
    assert world.requests["candidate"][0] != 2
    assert world.candidates["kv_used"][2] == 0
    assert loop.advance(world) == -1
    assert world.requests["on_time"][0] == 1
    assert (world.candidates["kv_used"] == 0).all()


def test_a_room_that_is_never_full_changes_nothing() -> None:
    """A finite but ample room gives the very same run as none."""
    offered = traffic(600.0, 1.0, 5)
    runs = [simulate(limited(room, 2), offered, spec("price"), 1) for room in (None, 10**9)]
    np.testing.assert_array_equal(runs[0].latency_N, runs[1].latency_N)
    np.testing.assert_array_equal(runs[0].reward_N, runs[1].reward_N)


class PacedDevice:
    """A paced tier on a device of its own and a clock that jumps."""

    def __init__(self, folder: Path, costs: TierProfile) -> None:
        self.now_s = 0.0
        self.end_s: dict[int, float] = {}
        fields = {name: getattr(costs, name) for name in TierProfile.__slots__}
        self.engine = PacedEngine(
            timing=TierTiming.from_profile({"tiers": {"large": fields}}, "large", 1.0),
            clock=self,
            control=Control(folder / "control.json"),
            on_tokens=self._tokens,
            on_dropped=lambda job, reason: None,
            now=lambda: self.now_s,
            sleep=self._sleep,
        )

    def take_turn(
        self, ready_s: float, least_duration_s: float, compose: Callable[[float], float]
    ) -> Any:
        """Starts at once: nobody else uses the device."""
        duration_s = compose(ready_s)
        return SimpleNamespace(end_s=ready_s + duration_s) if duration_s > 0.0 else None

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Works the jobs off; returns why each was refused, "" where it was not."""
        refusals = [self.engine.submit(job) for job in jobs]
        end_s = 0.0
        while self.engine.outstanding():
            end_s = self.engine.step(end_s)
        return refusals

    def _sleep(self, duration_s: float) -> None:
        self.now_s += duration_s

    def _tokens(self, jobs: Sequence[Job]) -> None:
        self.end_s |= {job.sink: self.now_s for job in jobs if job.is_complete}


@pytest.mark.parametrize("slack_s", [4.0, 100.0])
def test_paced_tiers_keep_the_same_limit(slack_s: float, tmp_path: Path) -> None:
    """The same requests are refused, and every one answered ends at the same moment."""
    offered = random_requests(np.random.default_rng(8), 150, slack_s)
    result = simulate(limited(130), offered, spec("static-large"))
    paced = PacedDevice(tmp_path, profile(130, max_batch=8).tiers["large"])
    jobs = [
        Job(
            sink=i,
            arrival_s=float(offered.arrival_N[i]),
            deadline_s=float(offered.arrival_N[i] + offered.slack_N[i]),
            prompt_token_count=int(offered.prompt_N[i]),
            output_token_count=int(offered.output_N[i]),
        )
        for i in range(len(offered))
    ]
    refusals = paced.run(jobs)
    refused_N = result.status_N == state.REFUSED
    assert [bool(text) for text in refusals] == refused_N.tolist()
    assert refusals[int(np.flatnonzero(refused_N)[0])].endswith("of 130 tokens")
    answered = np.flatnonzero(result.status_N == state.ANSWERED)
    assert 10 < len(answered) < len(offered)
    ends = [paced.end_s[int(i)] for i in answered]
    np.testing.assert_allclose(ends, offered.arrival_N[answered] + result.latency_N[answered])
