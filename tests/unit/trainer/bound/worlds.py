"""Drawn meshes and workloads on which the bound is tried."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from router.catalog import Catalog
from router.fleet import EndpointSpec, build_fleet
from router.profile import LatencyProfile, TierProfile
from router.types import RewardKind, SloKind, Task
from tests.unit.router import fleets
from trainer.simulation import engine, loop, state
from trainer.simulation.simulate import (
    FleetEvent,
    SimulationConfig,
    SimulationResult,
    make_world,
    result_of,
)
from trainer.simulation.workload import Lengths, Workload, gamma_renewal, make_workload


def assigned(setup: SimulationConfig, offered: Workload, action_N: Any) -> SimulationResult:
    """Returns what happens if requests go where they are told, -1 = nowhere."""
    world = make_world(setup, offered, 0)
    while (i := loop.advance(world)) >= 0:
        if action_N[i] < 0:
            engine.settle(world, i, state.REFUSED, float(world.clock["now_s"][0]))
        else:
            loop.apply(world, i, int(action_N[i]))
    return result_of(world, offered)


@st.composite
def setups(draw: st.DrawFn) -> SimulationConfig:
    """Draws costs, placement, kinds of deadline, events, routers and safety net."""
    scale = draw(st.sampled_from([0.3, 1.0, 3.0]))
    limit = draw(st.sampled_from([1, 3, 64]))
    room = draw(st.sampled_from([None, 400, 2000]))
    kept = draw(st.sampled_from([0, 300]))
    tiers = {
        name: TierProfile(
            cost.step_s * scale,
            cost.per_sequence_s * draw(st.sampled_from([0.0, 1.0, 20.0])),
            cost.per_prompt_token_s * draw(st.sampled_from([0.1, 1.0])),
            max_batch=limit,
            max_prompt_tokens_per_step=draw(st.sampled_from([64, 4096])),
            overhead_s=draw(st.sampled_from([0.0, 0.01])),
            max_kv_tokens=room,
            prefix_cache_tokens=kept,
        )
        for name, cost in fleets.profile().tiers.items()
    }
    profiles = {"": LatencyProfile("drawn", "assumed", tiers)}
    tasks = (
        Task(
            "easy",
            0.4,
            slo_kind=draw(st.sampled_from(list(SloKind))),
            reward_kind=draw(st.sampled_from(list(RewardKind))),
            soft_decay_s=draw(st.sampled_from([0.01, 0.1])),
        ),
        Task("hard", 0.4, reward_kind=draw(st.sampled_from(list(RewardKind))), soft_decay_s=0.1),
    )
    catalog = Catalog(fleets.TIERS, tasks, fleets.catalog().quality_KT)
    placements = st.lists(st.sampled_from(fleets.TIERS), min_size=1, max_size=3, unique=True)
    endpoints = [
        EndpointSpec(
            f"e{i}",
            f"127.0.0.1:{9000 + i}",
            f"d{i // 2}",  # two endpoints a device
            {tier: tier for tier in draw(placements)},
            speed=draw(st.sampled_from([1.0, 1.0, 0.7])),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    last = (len(endpoints) - 1) // 2
    events = draw(
        st.sampled_from(
            [
                (),
                (FleetEvent(0.2, 0, "lost"), FleetEvent(0.5, 0, "back")),
                (FleetEvent(0.1, last, "slow", 0.5), FleetEvent(0.4, last, "slow", 3.0)),
            ]
        )
    )
    return SimulationConfig(
        build_fleet(catalog, endpoints, profiles),
        catalog,
        profiles,
        safety=draw(st.booleans()),
        routers=draw(st.sampled_from([1, 2])),
        staleness_s=0.05,
        events=events,
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Draws bursty or even requests of two tasks with deadlines of their own, or conversations."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rate = draw(st.sampled_from([20.0, 100.0, 400.0, 2000.0]))
    arrival_N = gamma_renewal(rate, draw(st.sampled_from([0.3, 1.0, 5.0])), 0.8, rng)
    offered = make_workload(
        arrival_N,
        0.8,
        rng=rng,
        deadline_s=draw(st.sampled_from([(0.4, 0.4), (0.1, 0.8), (1.0, 0.03)])),
        task_share=(0.6, 0.4),
        lengths=Lengths(prompt_sigma=draw(st.sampled_from([0.0, 1.0])), output_spread=0.8),
    )
    if draw(st.booleans()):
        return offered
    return replace(offered, conversation_N=rng.integers(-1, 20, len(offered)))
