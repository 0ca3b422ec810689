"""What past requests could have earned."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from router.types import SloKind
from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import config, spec, traffic
from trainer.evaluation.hindsight import (
    ENOUGH,
    MOST_KINDS,
    by_kind,
    device_counts,
    look_back,
    workload_of,
)
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


def slow(**kind: Any) -> PastRequest:
    """A long answer, complete in time by the smallest tier alone; any tier begins at once."""
    return PastRequest("easy", 0.0, 10, 200, 0.4, 0.5, **kind)


@pytest.mark.parametrize(
    ("kind", "bound", "static"),
    [
        ({}, 0.8, 0.0),
        ({"slo_kind": SloKind.COMPLETE_ANSWER}, 0.8, 0.0),
        ({"slo_kind": SloKind.FIRST_TOKEN}, 1.0, 1.0),
        ({"slo_kind": SloKind.PER_TOKEN, "token_interval_s": 0.02}, 1.0, 1.0),
        ({"slo_kind": SloKind.PER_TOKEN, "token_interval_s": 0.001}, 0.8, 0.0),
    ],
)
def test_a_request_is_judged_by_what_its_own_deadline_was_for(
    kind: dict[str, Any], bound: float, static: float
) -> None:
    """Whatever its task's default is; parts are told by task all the same."""
    requests = [slow(**kind)._replace(arrival_s=10.0 * k) for k in range(4)]
    found = look_back(setting(), requests, most_devices=1)
    assert found.parts == {"easy": pytest.approx(4 * bound, abs=1e-3), "hard": 0.0}
    ((devices, reward),) = found.static_large
    assert devices == 1
    assert reward == pytest.approx(static)


def test_kinds_side_by_side_add_up_to_their_task() -> None:
    """Requests of one task with deadlines of two kinds share one part."""
    kinds = (SloKind.COMPLETE_ANSWER, SloKind.FIRST_TOKEN)
    requests = [slow(slo_kind=kinds[k % 2])._replace(arrival_s=10.0 * k) for k in range(4)]
    found = look_back(setting(), requests, most_devices=1)
    assert found.parts["easy"] == pytest.approx(2 * 0.8 + 2 * 1.0, abs=1e-3)


def test_of_many_intervals_only_octaves_are_told_apart() -> None:
    """None becomes shorter, so the bound stays one."""
    kind = SloKind.PER_TOKEN
    requests = [slow(slo_kind=kind, token_interval_s=0.01 + 0.001 * k) for k in range(200)]
    few, _, _ = by_kind(setting(), requests[:MOST_KINDS])
    assert len(few.catalog.tasks) == 2 + MOST_KINDS
    made, named, origin_K = by_kind(setting(), requests)
    assert len(made.catalog.tasks) == len(origin_K) < 10
    interval_of = {task.name: task.token_interval_s for task in made.catalog.tasks}
    for given, each in zip(requests, named, strict=True):
        assert given.token_interval_s <= interval_of[each.task] < 2.0 * given.token_interval_s


def test_numbers_of_devices_grow_by_an_eighth() -> None:
    """Few are tried of many, each of few."""
    assert device_counts(10) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    counts = device_counts(520)
    assert len(counts) < 50
    assert max(b / a for a, b in pairwise(counts[7:])) <= 1.125
    assert counts[-1] > 460
