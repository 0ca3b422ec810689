"""Measures the simulator's speed; prints, never judges times.

Run: pytest -q tests/bench/bench_simulator.py
"""

from __future__ import annotations

import time

import pytest

from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.simulation import loop
from trainer.simulation.simulate import make_world

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]


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
