"""How one snapshot does in many worlds, beside one trained for each and what needs no training.

In each world all policies answer the very same requests on the evaluation's held-out seeds, safety
net on, targets held.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from trainer.evaluation.jobs import Context
from trainer.evaluation.rows import ratio_of_means
from trainer.evaluation.scenarios import SCENARIOS, WARM_UP_S
from trainer.evaluation.seeds import stream
from trainer.evaluation.statistics import Interval, interval
from trainer.learning.offline.config import Budget, OfflineConfig
from trainer.learning.offline.training import train_policy
from trainer.research.transfer.worlds import DEADLINE_S, World
from trainer.research.tuning import TuningError
from trainer.simulation.setting import full_rate_rps
from trainer.simulation.simulate import simulate

SHIPPED, TRAINED = "shipped", "trained for it"
RATES = 5
CLUMPED = (1, 3)
"""Of the rates of a world, those at which clumped traffic comes too."""
DEADLINES = 15.0
"""Shortest run, deadlines: what is too much for the devices shows after some of them only."""
LONGEST_S = 30.0
NEAR = 0.98
"""Share of the trained one's performance from which on the shipped one is as good."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One policy in one case of a world.

    Attributes:
        world: name of the setting in the context.
        policy: the policy; `key_of` it is its name in the context.
        process: arrival process.
        rate_rps: offered rate.
        seed: evaluation seed.
        requests: about how many; a run lasts LONGEST_S at most, and DEADLINES at least.
    """

    world: str
    policy: str
    process: str
    rate_rps: float
    seed: int
    requests: int

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return max(float(self.requests), DEADLINES * DEADLINE_S * self.rate_rps)

    def run(self, context: Context) -> Row:
        """Returns what was in time and what was earned."""
        setting, rate_rps = context.settings[self.world], self.rate_rps
        duration_s = min(LONGEST_S, self.requests / rate_rps)
        duration_s = WARM_UP_S + max(DEADLINES * setting.deadline_s, duration_s)
        rng = stream(self.seed, f"transfer/{self.world}/{self.process}/{rate_rps:.6g}")
        arrival_N = SCENARIOS[self.process].make(rate_rps, duration_s, rng)
        workload = setting.workload(arrival_N, duration_s, rng)
        spec = context.policies[key_of(self.policy, self.world)]
        result = simulate(setting.config(), workload, spec, self.seed)
        return {
            "world": self.world,
            "process": self.process,
            "load": rate_rps / full_rate_rps(setting, largest=False),
            "policy": self.policy,
            "seed": self.seed,
            "availability": result.availability(WARM_UP_S),
            "performance": result.performance(WARM_UP_S),
        }


def key_of(policy: str, world: str) -> str:
    """Returns the name of a world's policy in a context."""
    return f"{policy}@{world}"


def trials(
    world: World, policies: Sequence[str], seeds: Sequence[int], requests: int
) -> list[Trial]:
    """Returns every policy in every case of a world: steady traffic, and clumped."""
    rates = world.mesh().rates(RATES)
    cases = [("poisson", rate) for rate in rates]
    cases += [("gamma-cv4", rates[index]) for index in CLUMPED]
    return [
        Trial(world.name, policy, process, rate, seed, requests)
        for process, rate in cases
        for policy in policies
        for seed in seeds
    ]


def trained_for(
    world: World,
    folder: Path,
    budget: Budget,
    say: Callable[[str], None],
    config: OfflineConfig | None = None,
) -> bytes:
    """Returns the snapshot trained for a world; one that lies in the folder is taken as it is.

    Args:
        world: the world.
        folder: of snapshots; the training is kept there too, so that it goes on after a kill.
        budget: of the training.
        say: told how far it is.
        config: how it learns; None: as shipped policies did.

    Raises:
        TuningError: what lies there is of another world.
        SnapshotError: what lies there is damaged.
        CheckpointError: likewise, or a training that was begun there is another one.
    """
    path = folder / f"{world.name.replace(' ', '-')}.safetensors"
    mesh = world.mesh()
    if path.is_file():
        blob = path.read_bytes()
        fleet = load_snapshot(blob, SCHEMA, str(path)).fleet
        devices = [list(tiers) for tiers in mesh.devices]
        if (fleet.get("profile"), fleet.get("devices")) != (mesh.profile.name, devices):
            raise TuningError(f"{path}: was trained for another world; delete it")
        return blob
    folder.mkdir(parents=True, exist_ok=True)

    def told(share: float, facts: dict[str, Any]) -> None:
        say(f"{world.name}: {facts['phase']} {100.0 * share:.0f} %")

    checkpoint = path.with_suffix(".checkpoint")
    blob = train_policy(mesh, config, seed=1, budget=budget, checkpoint=checkpoint, progress=told)
    path.write_bytes(blob)
    checkpoint.unlink(missing_ok=True)
    return blob


@dataclass(frozen=True)
class Found:
    """How a world's policies did.

    Attributes:
        world: its name.
        cells: (availability, performance) by case and policy, means over seeds.
        means: (availability, performance) by policy, means over cases.
        share: performance of the shipped snapshot over that of the one trained for it; None: there
            is none.
        lowest: that of the case where it is lowest, by the means.
        gain: performance of the shipped snapshot over price's, points; None: there is no price.
    """

    world: str
    cells: Mapping[tuple[str, float], Mapping[str, tuple[float, float]]]
    means: Mapping[str, tuple[float, float]]
    share: Interval | None
    lowest: float
    gain: Interval | None

    @property
    def verdict(self) -> str:
        """Whether the shipped one is as good as the trained one, beyond the interval."""
        if self.share is None:
            return "-"
        if self.share.mean - self.share.half >= NEAR:
            return "yes"
        return "no" if self.share.mean + self.share.half < NEAR else "cannot tell"


def found_of(rows: Sequence[Row]) -> Found:
    """Returns how one world's policies did."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    cases = list(dict.fromkeys((row["process"], row["load"]) for row in rows))

    def mean(policy: str, case: tuple[str, float] | None = None) -> tuple[float, float]:
        own = [
            (row["availability"], row["performance"])
            for row in rows
            if row["policy"] == policy and case in (None, (row["process"], row["load"]))
        ]
        availability, performance = np.mean(own, axis=0)
        return float(availability), float(performance)

    def by_seed(policy: str) -> list[float]:
        seeds: dict[int, list[float]] = {}
        for row in rows:
            if row["policy"] == policy:
                seeds.setdefault(row["seed"], []).append(row["performance"])
        return [float(np.mean(seeds[seed])) for seed in sorted(seeds)]

    cells = {case: {policy: mean(policy, case) for policy in policies} for case in cases}
    share, lowest, gain = None, math.nan, None
    if TRAINED in policies:
        share = interval(ratio_of_means(by_seed(SHIPPED), by_seed(TRAINED)))
        lowest = min(cell[SHIPPED][1] / max(cell[TRAINED][1], 1e-9) for cell in cells.values())
    if "price" in policies:
        pairs = zip(by_seed(SHIPPED), by_seed("price"), strict=True)
        gain = interval(100.0 * (own - price) for own, price in pairs)
    means = {policy: mean(policy) for policy in policies}
    return Found(str(rows[0]["world"]), cells, means, share, lowest, gain)


def summary(found: Sequence[Found], policies: Sequence[str]) -> str:
    """Returns a row per world in Markdown: in time / performance, means over its cases."""
    columns = [*policies, "shipped over trained", "lowest case", "within 2 %", "over price, points"]
    lines = ["| world | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for each in found:
        line = [each.world, *(_cell(each.means.get(policy)) for policy in policies)]
        line += [
            "-" if each.share is None else str(each.share),
            "-" if each.share is None else f"{each.lowest:.3f}",
            each.verdict,
            "-" if each.gain is None else f"{each.gain.mean:+.2f} ± {each.gain.half:.2f}",
        ]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def details(found: Sequence[Found], policies: Sequence[str]) -> str:
    """Returns a row per case in Markdown."""
    lines = [
        "| world | traffic | load | " + " | ".join(policies) + " |",
        "|---" * (len(policies) + 3) + "|",
    ]
    for each in found:
        for (process, load), cell in each.cells.items():
            line = [each.world, process, f"{load:.3f}", *(_cell(cell.get(p)) for p in policies)]
            lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines) + "\n"


def _cell(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:.4f} / {pair[1]:.3f}"
