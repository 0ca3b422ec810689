"""Measures decisions in process and the simulator's speed; prints, never judges times.

Run: pytest -q tests/bench/bench_simulator.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from router import features
from router.bound import BoundDecision, Rule
from router.dqn.network import q_values
from router.dqn.snapshot import Snapshot, zero_weights
from router.policies.scores import Query
from router.policies.table import make_policy
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.simulation import loop
from trainer.simulation.simulate import make_world

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]


def fastest_s(call: Callable[[], object], repeats: int = 15, inner: int = 60) -> float:
    """Returns the least mean CPU time of one call over batches, seconds."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(inner):
            call()
        times.append((time.process_time() - start) / inner)
    return min(times)


def test_decision_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Decisions with their observation on 4 devices x 3 tiers, beside a bare forward pass."""
    fleet = fleets.fleet(4)
    rng = np.random.default_rng(0)
    load = fleets.random_load(rng, fleet.candidate_count, 20.0)
    query = Query(0, 0.4, 100.0, 8.0, 8.0, 0.0, 110.0, 300.0, 300.0, 0.0, 0.0)
    weights = zero_weights(features.FEATURE_COUNT, 64)
    x_CF = rng.random((12, features.FEATURE_COUNT)).astype(np.float32)
    open_C, base_C, out_C = np.ones(12, np.bool_), np.zeros(12), np.zeros(12)
    names = tuple(feature.name for feature in features.FEATURES)
    snapshot = Snapshot(weights, features.SCHEMA, names)
    bare_s = fastest_s(lambda: q_values(x_CF, open_C, base_C, *weights, out_C))
    lines = [f"bare Q-network {bare_s * 1e6:.1f} us"]
    for name in ("static-large", "greedy", "price", "dqn"):
        policy = make_policy(name, fleets.catalog(), snapshot=snapshot if name == "dqn" else None)
        own_LC, others_LC, seen_LC = np.zeros((3, 3, fleet.candidate_count))
        own_LC[:] = load
        bound = BoundDecision(Rule.of(policy), fleet.arrays, own_LC, others_LC, seen_LC)
        taken_s = fastest_s(partial(bound.decide, query, 0.0, -1, 0.5, 0.5, 0.4, 0.7))
        lines.append(f"{name} {taken_s * 1e6:.1f} us = {taken_s / bare_s:.1f} x bare")
        assert taken_s > 0.0
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def test_simulator_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """Requests and loop events per second of CPU time, per policy."""
    lines = []
    for name, rate in (("static-small", 2000.0), ("price", 2000.0)):
        policy = spec(name)
        offered = traffic(rate, 20.0)
        loop.run(
            make_world(config(4), traffic(10.0, 1.0), 0),
            policy.row,
            policy.params_P.copy(),
            policy.weights,
        )
        world = make_world(config(4), offered, 0)
        start = time.process_time()
        loop.run(world, policy.row, policy.params_P.copy(), policy.weights)
        taken_s = time.process_time() - start
        # Events of a request: arrival with decision, dispatch, start in a batch, end.
        lines.append(
            f"{name}: {len(offered) / taken_s / 1e6:.2f} M requests/s, "
            f"{4 * len(offered) / taken_s / 1e6:.2f} M request events/s, "
            f"{int(world.clock[0]['events']) / taken_s / 1e6:.2f} M loop events/s"
        )
        assert (world.requests["status"] > 2).all()
    with capsys.disabled():
        print("\n" + "\n".join(lines))
