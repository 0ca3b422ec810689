"""The policy search for the scheduled price."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from router.policies import scheduled_price
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.scores import capacity, ladder_load
from router.types import Task
from tests.unit.router.fleets import QUERY
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.offline.config import PriceSearchConfig
from trainer.learning.offline.price_search import (
    KINDS,
    Ladder,
    PriceSearch,
    knot_scenarios,
    start_table,
)
from trainer.simulation.scenarios import TRUE_COSTS, Mesh

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(300)

SMALL = PriceSearchConfig(step=0.6, generations=(2,), population=4, requests=60)


def mesh(devices: int = 2, **setting: Any) -> Mesh:
    """Returns a small mesh."""
    given: dict[str, Any] = {
        "profile": PROFILE,
        "quality": QUALITY,
        "tasks": TASKS,
        "deadline_s": 0.3,
        "devices": devices,
    }
    return Mesh.build(**given | setting)


def test_ladder_is_the_routers() -> None:
    """Rates and ladder loads are those a router reads, at the mean lengths."""
    where = mesh()
    ladder, lengths = Ladder(where), where.lengths
    prompt = lengths.prompt_median * np.exp(0.5 * lengths.prompt_sigma**2)
    query = QUERY._replace(mean_prompt_tokens=prompt, output_tokens=lengths.output_mean)
    for load in (-0.3, 0.4, 1.1):
        rate = ladder.rate_rps(load)
        assert ladder.load(rate) == pytest.approx(load)
        assert ladder_load(capacity(where.fleet.arrays, query), rate) == pytest.approx(load)


def test_search_starts_at_price_with_bands_by_capacity() -> None:
    """At every knot the values are price's, and bands shrink from the top as the load grows."""
    table = scheduled_price.table_of(start_table(mesh(), PRICE_DEFAULTS_P, PriceSearchConfig()))
    rows = np.array(table["rows"])
    boundaries = rows[:, scheduled_price.VALUE_COUNT :]
    assert (np.diff(boundaries, axis=0) >= 0.0).all()
    assert boundaries[0].max() == 0.0
    assert (rows[:, 1] == PRICE_DEFAULTS_P[1]).all()


def test_a_knot_meets_every_kind_of_world() -> None:
    """Skewed traffic is of one task, only stale routers are several, only a loss has events."""
    found = knot_scenarios(mesh(), 0.5, 0.1, np.random.default_rng(2), 400)
    for kind, scenario in zip(KINDS, found, strict=True):
        workload, world = scenario.workload, scenario.config
        most = np.bincount(workload.task_N).max() / len(workload)
        assert bool(most > 0.88) is (kind == "skewed"), kind
        assert (world.routers > 1) is (kind == "stale"), kind
        assert bool(world.events) is (kind == "loss"), kind
        slower = world.profiles[TRUE_COSTS].tiers != world.profiles[""].tiers
        assert slower is (kind == "slower"), kind


def test_requests_of_a_knot_have_their_tasks_own_deadlines() -> None:
    """As they have when the network is trained, and when the policy serves."""
    where = mesh(tasks=(Task("a", 0.2), Task("b", 2.0)), deadline_s=None)
    for scenario in knot_scenarios(where, 0.5, 0.1, np.random.default_rng(2), 400):
        expected_N = np.array([0.2, 2.0])[scenario.workload.task_N]
        np.testing.assert_allclose(scenario.workload.slack_N, expected_N)


def test_search_is_a_function_of_its_seed() -> None:
    """The same seed finds the same table, another seed another one."""
    found = []
    for seed in (1, 1, 2):
        search = PriceSearch(mesh(), PRICE_DEFAULTS_P, seed, SMALL)
        while search.share_done < 1.0:
            search.next_knot()
        found.append(search.table_P)
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_a_value_on_its_bound_is_searched_from() -> None:
    """Taken from its unit and put back, it may lie beyond by the last bit."""
    search = PriceSearch(mesh(), PRICE_DEFAULTS_P, 7, SMALL)
    part = slice(search._start, search._start + search._width)
    search.table_P[part] = np.nextafter(search._high_V, np.inf) * search._unit_V
    search.next_knot()
    found_V = search.table_P[part] / search._unit_V
    within_V = np.clip(found_V, search._low_V, search._high_V)
    np.testing.assert_allclose(found_V, within_V, rtol=1e-12)


def test_search_goes_on_where_it_was() -> None:
    """A search restored from its state ends as one that was never interrupted."""
    whole = PriceSearch(mesh(), PRICE_DEFAULTS_P, 3, SMALL)
    whole.next_knot()
    state = json.loads(json.dumps(whole.get_state()))
    other = PriceSearch(mesh(), PRICE_DEFAULTS_P, 3, SMALL)
    other.set_state(state)
    whole.next_knot()
    other.next_knot()
    np.testing.assert_array_equal(whole.table_P, other.table_P)
    assert whole.knots_done == other.knots_done == 2


def test_little_time_means_fewer_generations_or_none() -> None:
    """A search that must be quick drops what comes last; one that has no time does not begin."""
    search = PriceSearch(mesh(), PRICE_DEFAULTS_P, 1, PriceSearchConfig())
    search.shorten(0.5)
    assert search.get_state()["generations"] == [18, 3]
    start_P = search.table_P.copy()
    search.shorten(1e-6)
    assert search.share_done == 1.0
    np.testing.assert_array_equal(search.table_P, start_P)
