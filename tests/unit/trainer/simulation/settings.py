"""Small settings for the tests of the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from router.catalog import Catalog
from router.fleet import EndpointSpec, build_fleet
from router.policies.table import make_policy
from router.types import Task
from tests.unit.router import fleets
from trainer.simulation.simulate import PolicySpec, SimulationConfig
from trainer.simulation.workload import Workload, make_workload, poisson


def config(
    device_count: int = 2, tasks: Sequence[Task] | None = None, **changes: Any
) -> SimulationConfig:
    """Returns a config of the routers' test fleet, safety net off unless said otherwise."""
    catalog = fleets.catalog()
    if tasks is not None:
        catalog = Catalog(catalog.tiers, tuple(tasks), catalog.quality_KT[: len(tasks)])
    endpoints = [
        EndpointSpec(f"e{i}", f"127.0.0.1:{9000 + i}", f"d{i}", {t: t for t in catalog.tiers})
        for i in range(device_count)
    ]
    profiles = {"": fleets.profile()}
    fleet = build_fleet(catalog, endpoints, profiles)
    return replace(SimulationConfig(fleet, catalog, profiles, safety=False), **changes)


def spec(name: str, **params: float) -> PolicySpec:
    """Returns a policy for the simulator."""
    return PolicySpec.of(make_policy(name, fleets.catalog(), params))


def requests(*rows: tuple[float, float, int], slack_s: float = 10.0) -> Workload:
    """Returns a workload of (arrival_s, prompt tokens, output tokens) rows, task 0."""
    array = np.array(rows, dtype=np.float64).reshape(-1, 3)
    count = len(array)
    return Workload(
        array[:, 0],
        np.zeros(count, np.int64),
        array[:, 1],
        array[:, 2].astype(np.int64),
        np.full(count, slack_s),
        float(array[-1, 0]) + 1.0 if count else 1.0,
    )


def traffic(rate_rps: float, duration_s: float, seed: int = 0, deadline_s: float = 0.4) -> Workload:
    """Returns Poisson traffic over the two test tasks."""
    rng = np.random.default_rng(seed)
    return make_workload(
        poisson(rate_rps, duration_s, rng),
        duration_s,
        rng=rng,
        deadline_s=deadline_s,
        task_share=(0.5, 0.5),
    )
