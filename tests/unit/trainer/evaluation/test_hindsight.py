"""What past requests could have earned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.evaluation.hindsight import ENOUGH, device_counts, look_back, workload_of
from trainer.evaluation.past import PastRequest
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def setting() -> Setting:
    """Two devices with all tiers."""
    made = config(2)
    return Setting("test", made.catalog, made.fleet, {"": fleets.profile()})


def past(rate_rps: float) -> list[PastRequest]:
    """Requests that came a long time ago, the last one first."""
    offered = traffic(rate_rps, 3.0)
    names = [task.name for task in fleets.catalog().tasks]
    rows = zip(offered.task_N, offered.arrival_N, offered.prompt_N, offered.output_N, strict=True)
    return [
        PastRequest(names[task], 1e9 + arrival_s, int(prompt), int(output), 0.4, 0.5)
        for task, arrival_s, prompt, output in rows
    ][::-1]


def test_no_policy_earns_more_and_more_devices_earn_enough() -> None:
    """The parts add up to a bound; the largest tier alone earns ever more, up to nearly all."""
    mesh, requests = setting(), past(200.0)
    found = look_back(mesh, requests, most_devices=40)
    bound = sum(found.parts.values()) / len(requests)
    price = simulate(mesh.config(), workload_of(mesh, requests), spec("price"), 1)
    assert price.performance(0.0) <= bound <= 1.0
    earned = [performance for _count, performance in found.static_large]
    assert np.diff(earned).min() > -0.02
    assert earned[0] < bound
    assert earned[-1] >= ENOUGH
    assert [count for count, _ in found.static_large][:3] == [1, 2, 3]


@pytest.mark.parametrize(("room", "left"), [(0, [900.0, 900.0]), (640, [836.0, 260.0])])
def test_what_need_not_be_computed_costs_nothing(room: int, left: list[float]) -> None:
    """As far as tiers have room for prefixes."""
    mesh, profile = setting(), fleets.profile()
    tiers = {t: replace(each, prefix_cache_tokens=room) for t, each in profile.tiers.items()}
    mesh = replace(mesh, profiles={"": replace(profile, tiers=tiers)})
    task = mesh.catalog.tasks[0].name
    requests = [PastRequest(task, at, 900, 8, 0.4, 0.5, most) for at, most in ((0, 64), (1, 899))]
    assert workload_of(mesh, requests).prompt_N.tolist() == left


def test_numbers_of_devices_grow_by_an_eighth() -> None:
    """Few are tried of many, each of few."""
    assert device_counts(10) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    counts = device_counts(520)
    assert len(counts) < 50
    assert max(b / a for a, b in pairwise(counts[7:])) <= 1.125
    assert counts[-1] > 460
