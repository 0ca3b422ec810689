"""What is held fixed while policies are compared: fleet, tasks, costs, deadline, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.profile import LatencyProfile
from router.types import Task
from trainer.simulation.scenarios import full_batch_times_s, typical_deadline_s
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import OPT_LENGTHS, Lengths, Workload, make_workload

HOLDS = 0.99
"""Availability from which on a policy is said to hold a load."""
FULL_SHARE = 0.6
"""Share of its capacity in full batches that the largest tier holds, about; unit of the loads."""


@dataclass(frozen=True)
class Setting:
    """What is held fixed in a sweep.

    Attributes:
        name: for tables.
        catalog: tiers, tasks, quality.
        fleet: candidates.
        profiles: true costs.
        lengths: prompt and output lengths.
        task_share: share of each task.
    """

    name: str
    catalog: Catalog
    fleet: Fleet
    profiles: Mapping[str, LatencyProfile]
    lengths: Lengths = OPT_LENGTHS
    task_share: tuple[float, ...] = ()

    @property
    def deadline_s(self) -> float:
        """The typical deadline, seconds: the median of the tasks'. Requests have their own."""
        return typical_deadline_s(self.catalog.tasks)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each task, even unless given."""
        return self.task_share or tuple(1.0 for _ in self.catalog.tasks)

    def facts(self) -> dict[str, Any]:
        """Returns what must be the same where two sets of numbers stand side by side."""
        return {
            "profile": self.profiles[""].name,
            "devices": len(self.fleet.devices),
            "tasks": [task.name for task in self.catalog.tasks],
            "deadline_s": self.deadline_s,
            "output_tokens": self.lengths.output_mean,
            "quality": self.catalog.quality_KT.tolist(),
        }

    def config(self, *, safety: bool = True) -> SimulationConfig:
        """Returns a simulation config of this setting; use `dataclasses.replace` for the rest."""
        return SimulationConfig(
            self.fleet, self.catalog, self.profiles, safety=safety, hold_targets=safety
        )

    def workload(
        self, arrival_N: NDArray[np.float64], duration_s: float, rng: np.random.Generator
    ) -> Workload:
        """Returns arrivals with this setting's tasks, lengths and deadline."""
        return make_workload(
            arrival_N,
            duration_s,
            rng=rng,
            deadline_s=[task.default_deadline_s for task in self.catalog.tasks],
            task_share=self.shares,
            lengths=self.lengths,
        )


@dataclass(frozen=True)
class OwnMesh:
    """A mesh as somebody describes it.

    Attributes:
        name: of the mesh.
        catalog: tiers, tasks with their deadlines, quality.
        quality: the quality table.
        profile: costs on every device.
        devices: tiers placed on each device.
        lengths: prompt and output lengths.
        task_share: share of each task; empty: even.
        notes: what had to be assumed.
    """

    name: str
    catalog: Catalog
    quality: QualityTable
    profile: LatencyProfile
    devices: tuple[tuple[str, ...], ...]
    lengths: Lengths
    task_share: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()

    def setting(self) -> Setting:
        """Returns it as policies are compared on it."""
        endpoints = [
            EndpointSpec(
                f"device-{i}", f"127.0.0.1:{8001 + i}", f"device-{i}", {t: t for t in tiers}
            )
            for i, tiers in enumerate(self.devices)
        ]
        profiles = {"": self.profile}
        fleet = build_fleet(self.catalog, endpoints, profiles)
        return Setting(self.name, self.catalog, fleet, profiles, self.lengths, self.task_share)


def shared_fleet_setting(
    name: str,
    profile: LatencyProfile,
    quality: QualityTable,
    *,
    tiers: Sequence[str] = ("small", "medium", "large"),
    device_count: int = 4,
    deadline_s: float = 0.4,
    lengths: Lengths = OPT_LENGTHS,
) -> Setting:
    """Returns a setting in which every device serves every tier and all tasks are equally likely.

    Raises:
        InvalidFileError: the quality table lacks a tier of a task.
    """
    tasks = tuple(
        Task(task, deadline_s, expected_output_tokens=lengths.output_mean)
        for task in quality.quality
    )
    catalog = Catalog.build(tuple(tiers), tasks, quality)
    own = OwnMesh(name, catalog, quality, profile, (tuple(tiers),) * device_count, lengths)
    return own.setting()


def with_routers(config: SimulationConfig, routers: int, staleness_s: float) -> SimulationConfig:
    """Returns the config with several routers that see each other late."""
    return replace(config, routers=routers, staleness_s=staleness_s)


def full_rate_rps(setting: Setting, largest: bool) -> float:
    """Returns the rate at which the largest (or smallest) tier alone fills all devices, req/s."""
    tier_C = setting.fleet.arrays.tier_C
    rows_C = tier_C == (tier_C.max() if largest else tier_C.min())
    time_C = full_batch_times_s(setting.fleet, setting.lengths)
    return float(rows_C.sum() / time_C[rows_C].min())


def unit_rate_rps(setting: Setting) -> float:
    """Returns the unit of loads: about what the largest tier holds by itself, requests/s."""
    return FULL_SHARE * full_rate_rps(setting, largest=True)
