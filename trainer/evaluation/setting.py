"""What is held fixed while policies are compared: fleet, tasks, costs, deadline, lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, Fleet, build_fleet
from router.profile import LatencyProfile
from router.types import Task
from trainer.simulation.simulate import SimulationConfig
from trainer.simulation.workload import OPT_LENGTHS, Lengths, Workload, make_workload

HOLDS = 0.99
"""Availability from which on a policy is said to hold a load."""


@dataclass(frozen=True)
class Setting:
    """What is held fixed in a sweep.

    Attributes:
        name: for tables.
        catalog: tiers, tasks, quality.
        fleet: candidates.
        profiles: true costs.
        deadline_s: deadline of every request, seconds.
        lengths: prompt and output lengths.
        task_share: share of each task.
    """

    name: str
    catalog: Catalog
    fleet: Fleet
    profiles: Mapping[str, LatencyProfile]
    deadline_s: float
    lengths: Lengths = OPT_LENGTHS
    task_share: tuple[float, ...] = ()

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each task, even unless given."""
        return self.task_share or tuple(1.0 for _ in self.catalog.tasks)

    def config(self, *, safety: bool = True) -> SimulationConfig:
        """Returns a simulation config of this setting; use `dataclasses.replace` for the rest."""
        return SimulationConfig(self.fleet, self.catalog, self.profiles, safety=safety)

    def workload(
        self, arrival_N: NDArray[np.float64], duration_s: float, rng: np.random.Generator
    ) -> Workload:
        """Returns arrivals with this setting's tasks, lengths and deadline."""
        return make_workload(
            arrival_N,
            duration_s,
            rng=rng,
            deadline_s=self.deadline_s,
            task_share=self.shares,
            lengths=self.lengths,
        )


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
    endpoints = [
        EndpointSpec(f"device-{i}", f"127.0.0.1:{8001 + i}", f"device-{i}", {t: t for t in tiers})
        for i in range(device_count)
    ]
    profiles = {"": profile}
    fleet = build_fleet(catalog, endpoints, profiles)
    return Setting(name, catalog, fleet, profiles, deadline_s, lengths)


def with_routers(config: SimulationConfig, routers: int, staleness_s: float) -> SimulationConfig:
    """Returns the config with several routers that see each other late."""
    return replace(config, routers=routers, staleness_s=staleness_s)
