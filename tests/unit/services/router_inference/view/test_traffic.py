"""Own traffic, the others' and how answers keep to predictions."""

from __future__ import annotations

import random

import pytest

from services.router_inference.view.traffic import Arrivals
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings
from tests.unit.services.router_inference.parts import make_rig
from tests.unit.services.router_inference.scenario import scenario
from tests.unit.services.router_inference.view.states import endpoint, state


@scenario
async def test_answers_slower_than_predicted_reach_the_signals() -> None:
    """What ends late beside its prediction is in the next decision's signals."""
    rig = make_rig()
    view, now_s = rig.core.view, rig.clock.monotonic_s()
    assert view.traffic.signals(now_s, 0.4).slowdown == 1.0
    for k in range(100):
        view.traffic.on_compared(now_s + 0.001 * k, 0.4, 0.13, 0.1, finished=True)
    assert view.traffic.signals(now_s + 0.1).slowdown == pytest.approx(1.19, abs=0.03)
    view.apply(state(endpoint(0)), now_s + 0.1)
    assert view.traffic.signals(now_s + 0.1).slowdown == view.traffic.latency_slowdown(now_s + 0.1)


def test_rates_and_burstiness_are_those_of_all_workers() -> None:
    """Each tells what one process would, however the kernel shares connections out."""
    memory = Memory(worker_count=3, counts_width=1)
    workers = [Arrivals(0.0, SharedSiblings(memory, number)) for number in (1, 2, 3)]
    alone = Arrivals(0.0, NoSiblings())
    rng = random.Random(7)
    now_s = 0.0
    for _ in range(4000):
        now_s += 0.001 if rng.random() < 0.9 else 0.05  # clumps
        alone.count(now_s, 10.0)
        rng.choices(workers, weights=(8, 3, 1))[0].count(now_s, 10.0)
    for worker in workers:
        assert worker.rates_rps(now_s) == pytest.approx(alone.rates_rps(now_s), rel=1e-9)
        assert worker.burstiness() == pytest.approx(alone.burstiness(), rel=0.35)


def test_a_successor_goes_on_with_what_was_seen() -> None:
    """A worker that is killed takes no arrivals out of the rates."""
    memory = Memory(worker_count=2, counts_width=1)
    first = Arrivals(0.0, SharedSiblings(memory, 1))
    for tick in range(1, 101):
        first.count(0.01 * tick, 10.0)
    memory.retire(1, lambda counts: counts)
    successor = Arrivals(1.0, SharedSiblings(memory, 1))
    assert successor.rates_rps(1.0) == first.rates_rps(1.0)
    other = Arrivals(1.0, SharedSiblings(memory, 2))
    assert other.rates_rps(1.0) == first.rates_rps(1.0)
