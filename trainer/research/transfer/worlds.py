"""Fleets and ladders of tiers that a snapshot may never have seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from router.catalog import QualityTable
from router.profile import LatencyProfile
from router.types import Task
from trainer.research.tuning import TuningError
from trainer.simulation.scenarios import Mesh, default_lengths
from trainer.simulation.setting import Setting, shared_fleet_setting

SIZES = (1, 2, 4, 8, 16, 32, 64)
DEVICES = 4
"""Of the worlds that differ by their ladder."""
DEADLINE_S = 0.4


@dataclass(frozen=True)
class World:
    """What a policy meets.

    Attributes:
        name: for tables and files.
        profile: costs; its tiers, lowest quality first, are on every device.
        quality: quality of these tiers.
        devices: number of devices.
        deadline_s: of every task, seconds.
    """

    name: str
    profile: LatencyProfile
    quality: QualityTable
    devices: int = DEVICES
    deadline_s: float = DEADLINE_S

    @property
    def tasks(self) -> list[Task]:
        """The tasks of the quality table."""
        return [Task(name, self.deadline_s) for name in self.quality.quality]

    def setting(self) -> Setting:
        """Returns it as policies are compared in it."""
        return shared_fleet_setting(
            self.name,
            self.profile,
            self.quality,
            tiers=tuple(self.profile.tiers),
            device_count=self.devices,
            deadline_s=self.deadline_s,
            lengths=default_lengths(self.profile, self.tasks),
        )

    def mesh(self) -> Mesh:
        """Returns it as policies are trained for it."""
        return Mesh.build(
            profile=self.profile, quality=self.quality, tasks=self.tasks, devices=self.devices
        )


def worlds_of(
    profile: LatencyProfile, quality: QualityTable, measured: tuple[LatencyProfile, QualityTable]
) -> list[World]:
    """Returns the worlds, made of the profile that the snapshot knows and of a measured one.

    Raises:
        TuningError: the profile has no ladder.
    """
    if len(profile.tiers) < 2:
        raise TuningError(f"profile {profile.name!r} must have two tiers or more")
    small, *_, large = profile.tiers
    return [
        *(World(f"{n} device{'s'[: n > 1]}", profile, quality, n) for n in SIZES),
        World("two tiers", _only(profile, (small, large)), quality),
        World("four tiers", *_with_one_between(profile, quality)),
        World("flat ladder", _flat(profile), quality),
        World("reference tiers", *measured, devices=2, deadline_s=0.2),
    ]


def _only(profile: LatencyProfile, tiers: Sequence[str]) -> LatencyProfile:
    """Returns the profile of some of the tiers."""
    kept = {tier: profile.tiers[tier] for tier in tiers}
    return replace(profile, name=f"{profile.name}-{len(kept)}", tiers=kept)


def _with_one_between(
    profile: LatencyProfile, quality: QualityTable
) -> tuple[LatencyProfile, QualityTable]:
    """Returns both with one more tier between the two smallest.

    Its costs are the geometric means of theirs, its qualities the means.
    """
    (low, low_costs), (high, high_costs), *rest = profile.tiers.items()

    between = replace(
        low_costs,
        step_s=math.sqrt(low_costs.step_s * high_costs.step_s),
        per_sequence_s=math.sqrt(low_costs.per_sequence_s * high_costs.per_sequence_s),
        per_prompt_token_s=math.sqrt(low_costs.per_prompt_token_s * high_costs.per_prompt_token_s),
        overhead_s=math.sqrt(low_costs.overhead_s * high_costs.overhead_s),
    )
    tiers = {low: low_costs, "between": between, high: high_costs, **dict(rest)}
    rows = {
        task: {**row, "between": 0.5 * (row[low] + row[high])}
        for task, row in quality.quality.items()
    }
    return replace(profile, name=f"{profile.name}-4", tiers=tiers), replace(quality, quality=rows)


def _flat(profile: LatencyProfile) -> LatencyProfile:
    """Returns a ladder on which a tier costs only the root of what it costs over the smallest."""
    first, *_ = profile.tiers.values()
    tiers = {
        name: tier.scaled(math.sqrt(first.step_s / tier.step_s))
        for name, tier in profile.tiers.items()
    }
    return replace(profile, name=f"{profile.name}-flat", tiers=tiers)
