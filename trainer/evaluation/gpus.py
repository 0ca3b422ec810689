"""GPUs: how many of them static-large needs to equal what a policy earns on the nominal fleet.

A static deployment has its one tier loaded and nothing else. So with the safety net on it can
refuse, and retry elsewhere, but has no smaller tier to rescue to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.catalog import Catalog
from router.fleet import EndpointSpec, build_fleet
from router.policies.table import make_policy
from trainer.evaluation.jobs import Context
from trainer.evaluation.rows import Row, measured, ratio_of_means, rounded
from trainer.evaluation.scenarios import WARM_UP_S
from trainer.evaluation.seeds import stream
from trainer.simulation.setting import Setting
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.workload import Workload, poisson

PAPER_DEVICES = 8
"""Devices of the static deployment the paper compares with (arXiv 2401.07886)."""
SERVES_NOTHING = 1e-3
"""Performance below which a ratio against it says nothing."""


def large_only(setting: Setting, device_count: int) -> Setting:
    """Returns a deployment of the largest tier alone on a number of devices."""
    tier, profile = setting.catalog.tiers[-1], setting.profiles[""]
    catalog = Catalog(
        (tier,), setting.catalog.tasks, np.ascontiguousarray(setting.catalog.quality_KT[:, -1:])
    )
    endpoints = [
        EndpointSpec(f"device-{i}", "127.0.0.1:1", f"device-{i}", {tier: tier})
        for i in range(device_count)
    ]
    fleet = build_fleet(catalog, endpoints, {"": profile})
    return replace(setting, catalog=catalog, fleet=fleet, profiles={"": profile})


@dataclass(frozen=True)
class StaticLarge:
    """The largest tier alone, on any number of devices, over the same requests.

    Attributes:
        setting: whose tiers, costs and tasks.
        workload: the requests.
        safety: safety net on or off.
        seed: of the simulation.
        warm_up_s: requests that arrive earlier do not count, seconds.
    """

    setting: Setting
    workload: Workload
    safety: bool
    seed: int
    warm_up_s: float

    def performance(self, device_count: int) -> float:
        """Returns what it earns on a number of devices."""
        alone = large_only(self.setting, device_count)
        policy = make_policy(f"static-{alone.catalog.tiers[0]}", alone.catalog)
        config = alone.config(safety=self.safety)
        result = simulate(config, self.workload, PolicySpec.of(policy), self.seed)
        return result.performance(self.warm_up_s)

    def fewest_devices(self, goal: float, limit: int) -> int | None:
        """Returns the fewest devices with which it earns `goal`; None if `limit` are too few.

        By bisection: performance is taken to rise with the devices.
        """
        if self.performance(limit) < goal:
            return None
        low, high = 0, limit
        while high - low > 1:
            middle = (low + high) // 2
            if self.performance(middle) >= goal:
                high = middle
            else:
                low = middle
        return high


@dataclass(frozen=True)
class GpuCount:
    """Result of one search.

    Attributes:
        performance: of the policy on the nominal fleet.
        paper_performance: of static-large on PAPER_DEVICES devices.
        devices: fewest devices with which static-large earns at least `performance`; None if
            `limit` are too few.
        limit: most devices tried.
    """

    performance: float
    paper_performance: float
    devices: int | None
    limit: int


@dataclass(frozen=True)
class GpuJob:
    """Compares one policy with static-large on ever more devices, over the same requests.

    Attributes:
        policy: name in the context.
        safety: safety net on or off, for both.
        load: offered rate as a multiple of what static-large holds on the nominal fleet.
        rate_rps: offered rate.
        seed: evaluation seed.
        duration_s: length of a run, seconds.
    """

    policy: str
    safety: bool
    load: float
    rate_rps: float
    seed: int
    duration_s: float

    @property
    def cost(self) -> float:
        """Simulated requests, about; runs with many devices are slow."""
        return self.rate_rps * self.duration_s * 8.0 * (1.0 + self.load / 4.0)

    def run(self, context: Context) -> GpuCount:
        """Finds the number."""
        setting = context.settings[""]
        rng = stream(self.seed, f"gpus/{self.load:.6g}")
        arrival_N = poisson(self.rate_rps, self.duration_s, rng)
        workload = setting.workload(arrival_N, self.duration_s, rng)
        config = setting.config(safety=self.safety)
        result = simulate(config, workload, context.policies[self.policy], self.seed)
        goal = result.performance(WARM_UP_S)
        static = StaticLarge(setting, workload, self.safety, self.seed, WARM_UP_S)
        paper = static.performance(PAPER_DEVICES)
        # Twice what the load needs: more devices than that add nothing.
        limit = int(2.0 * self.load * len(setting.fleet.devices)) + 4
        return GpuCount(goal, paper, static.fewest_devices(goal, limit), limit)


def gpu_rows(jobs: Sequence[GpuJob], counts: Sequence[GpuCount], device_count: int) -> list[Row]:
    """Returns a row per policy, net and load.

    The number of GPUs is None where it was not found in some seed: more than the most tried. The
    ratio per GPU is None, and `static_serves_nothing` true, where the static deployment serves less
    than SERVES_NOTHING: it has no limit there.

    Args:
        jobs: what was searched.
        counts: what was found, in the same order.
        device_count: devices of the nominal fleet.
    """
    groups: dict[tuple[str, bool, float, float], list[GpuCount]] = {}
    for job, count in zip(jobs, counts, strict=True):
        groups.setdefault((job.policy, job.safety, job.load, job.rate_rps), []).append(count)
    rows = []
    for (policy, net, load, rate_rps), found in groups.items():
        needed = [count.devices for count in found if count.devices is not None]
        column = "static_large_devices"
        unknown: Row = {column: None, f"{column}_ci95": None}
        paper = [c.paper_performance for c in found]
        nothing = float(np.mean(paper)) < SERVES_NOTHING
        ratio: Row = {"per_gpu_ratio": None, "per_gpu_ratio_ci95": None}
        if not nothing:
            each = [PAPER_DEVICES / device_count * c.performance for c in found]
            ratio = measured("per_gpu_ratio", ratio_of_means(each, paper))
        rows.append(
            {
                "policy": policy,
                "safety_net": net,
                "rate_rps": rounded(rate_rps),
                "load": rounded(load),
                "devices": device_count,
                **measured("performance", (c.performance for c in found)),
                **(measured(column, needed) if len(needed) == len(found) else unknown),
                "most_devices_tried": found[0].limit,
                "paper_devices": PAPER_DEVICES,
                **measured("paper_devices_performance", paper),
                "static_serves_nothing": nothing,
                **ratio,
            }
        )
    return rows
