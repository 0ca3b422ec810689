"""Endpoint pickers against round robin: latency, availability and the load held.

Three fleets of four devices. `own`: every device serves the largest tier alone, so that the
endpoints are replicas of one model, as in arXiv 2408.13510, whose router gains 11.43 % of the
end-to-end latency over round robin (by learning; join-shortest-queue there gains 0.46 %). `shared`:
every device serves every tier, and the tier is drawn evenly whatever the load, so that nothing but
the picker differs. In both, outputs are long-tailed, prompts widely spread and deadlines long: what
counts is latency. `price`: the setting of the evaluation, its lengths and its deadline, under the
price policy, whose own joint choice of tier and endpoint is a row beside the pickers: what counts
is performance.

Nobody knows a request's output length, only its task's running mean. The safety net is off. All
pickers meet the same requests at one rate per fleet: `LOAD` of what round robin holds, or for
`price` `PRICE_LOAD` of what the largest tier holds.

Shape letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.catalog import Catalog, QualityTable
from router.fleet import EndpointSpec, build_fleet
from router.picker import PICKERS
from router.policies.table import PICKER_MARK, make_policy
from router.profile import LatencyProfile
from router.types import Task
from trainer.evaluation.hold import bracket_rps, highest_held_rps
from trainer.evaluation.jobs import Context
from trainer.evaluation.rows import Row, rounded, with_ends
from trainer.evaluation.seeds import stream
from trainer.evaluation.statistics import Interval, interval
from trainer.simulation.setting import Setting, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import PolicySpec, SimulationResult, simulate
from trainer.simulation.workload import Lengths, poisson

PUBLISHED_GAIN = 0.1143
"""End-to-end latency saved against round robin by the router of arXiv 2408.13510."""

BASELINE = "round-robin"
JOINT = "joint"
"""Row of the policy's own choice of an endpoint."""

LOAD = 0.85
PRICE_LOAD = 3.0
DEVICE_COUNT = 4
DEADLINE_S = 5.0
"""Long beside a typical answer: what counts is latency; requests end at their deadline."""
PRICE_DEADLINE_S = 0.4
WARM_UP_S = 1.0
HELD_SHARE = 0.25
"""Share of a run's length that each step of the search for the held rate takes."""


@dataclass(frozen=True, slots=True)
class LongTailedLengths(Lengths):
    """Lengths with lognormal outputs.

    Attributes:
        output_sigma: standard deviation of the logarithm of output lengths.
    """

    output_sigma: float = 1.0

    def sample(
        self, count: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns whole prompt and output lengths of `count` requests."""
        prompt = self.prompt_median * np.exp(self.prompt_sigma * rng.standard_normal(count))
        median = self.output_mean / np.exp(0.5 * self.output_sigma**2)
        output = median * np.exp(self.output_sigma * rng.standard_normal(count))
        prompt_N = np.clip(np.rint(prompt), 1, self.prompt_max)
        return prompt_N, np.clip(np.rint(output), 1, self.output_max).astype(np.int64)


LENGTHS = LongTailedLengths(
    prompt_median=110.0, prompt_sigma=1.0, prompt_max=2000, output_mean=24.0, output_max=256
)


@dataclass(frozen=True, slots=True)
class PickerRow:
    """One picker on one fleet.

    Attributes:
        fleet: "own", "shared" or "price".
        policy: chooses the tier.
        picker: name, or JOINT for the policy's own choice.
        rate_rps: rate of all measurements but the last.
        mean_s: mean time from arrival to the end, seconds.
        p99_s: 99th percentile over all seeds, seconds.
        gain: share of round robin's mean latency saved, by seed.
        availability: share answered inside the deadline.
        performance: mean over requests of quality x on time.
        held_rps: highest rate at which that is at least 0.99.
    """

    fleet: str
    policy: str
    picker: str
    rate_rps: float
    mean_s: Interval
    p99_s: float
    gain: Interval
    availability: Interval
    performance: Interval
    held_rps: float


def picker_settings(
    profile: LatencyProfile, quality: QualityTable
) -> dict[str, tuple[Setting, str]]:
    """Returns setting and tier policy of each fleet; the tiers are the profile's."""
    tiers = tuple(profile.tiers)
    own = _setting("own", profile, quality, tiers[-1:])
    shared = _setting("shared", profile, quality, tiers)
    price = shared_fleet_setting(
        "pickers, price",
        profile,
        quality,
        tiers=tiers,
        device_count=DEVICE_COUNT,
        deadline_s=PRICE_DEADLINE_S,
    )
    return {
        "own": (own, f"static-{tiers[-1]}"),
        "shared": (shared, "random"),
        "price": (price, "price"),
    }


def picker_rows(
    profile: LatencyProfile,
    quality: QualityTable,
    *,
    seeds: Sequence[int],
    duration_s: float = 40.0,
    pickers: Sequence[str] = tuple(PICKERS),
    progress: Callable[[str], None] | None = None,
) -> list[PickerRow]:
    """Returns a row per fleet and picker; a function of its arguments alone.

    Args:
        profile: latency profile, tiers from lowest quality to highest.
        quality: quality table.
        seeds: evaluation seeds.
        duration_s: length of a run, seconds.
        pickers: names in `router.picker.PICKERS`; round robin is always among the rows.
        progress: told one line per fleet.
    """
    rows: list[PickerRow] = []
    names = [BASELINE, *(name for name in pickers if name != BASELINE)]
    for fleet, (setting, policy) in picker_settings(profile, quality).items():
        specs = {
            name: PolicySpec.of(make_policy(f"{policy}{PICKER_MARK}{name}", setting.catalog))
            for name in names
        }
        rate_rps = PRICE_LOAD * unit_rate_rps(setting)
        if policy == "price":
            specs[JOINT] = PolicySpec.of(make_policy(policy, setting.catalog))
        held = {name: _held_rps(setting, spec, seeds, duration_s) for name, spec in specs.items()}
        if policy != "price":
            rate_rps = LOAD * held[BASELINE]
        found = {
            name: [_run(setting, spec, rate_rps, seed, duration_s) for seed in seeds]
            for name, spec in specs.items()
        }
        latency = {
            name: [run.latency_N[run.observed(WARM_UP_S)] for run in runs]
            for name, runs in found.items()
        }
        mean_S = {
            name: np.array([part.mean() for part in parts]) for name, parts in latency.items()
        }
        rows += [
            PickerRow(
                fleet,
                policy,
                name,
                rate_rps,
                interval(mean_S[name]),
                float(np.quantile(np.concatenate(latency[name]), 0.99)),
                interval(1.0 - mean_S[name] / mean_S[BASELINE]),
                interval(run.availability(WARM_UP_S) for run in runs),
                interval(run.performance(WARM_UP_S) for run in runs),
                held[name],
            )
            for name, runs in found.items()
        ]
        if progress is not None:
            progress(f"{fleet}: {len(specs)} pickers at {rate_rps:.0f} req/s")
    return rows


def _setting(
    name: str, profile: LatencyProfile, quality: QualityTable, placed: tuple[str, ...]
) -> Setting:
    """Returns a fleet whose devices all serve the tiers of `placed`."""
    tasks = tuple(
        Task(task, DEADLINE_S, expected_output_tokens=LENGTHS.output_mean)
        for task in quality.quality
    )
    catalog = Catalog.build(tuple(profile.tiers), tasks, quality)
    endpoints = [
        EndpointSpec(f"e{i}", f"127.0.0.1:{8001 + i}", f"d{i}", {tier: tier for tier in placed})
        for i in range(DEVICE_COUNT)
    ]
    profiles = {"": profile}
    fleet = build_fleet(catalog, endpoints, profiles)
    return Setting(f"pickers, {name}", catalog, fleet, profiles, LENGTHS)


def _held_rps(setting: Setting, spec: PolicySpec, seeds: Sequence[int], duration_s: float) -> float:
    # Three seeds bracket a rate to 2 %; what is measured at the rate uses all of them.
    few = tuple(seeds[:3])
    duration_s = max(HELD_SHARE * duration_s, 2.0 * setting.deadline_s)
    low, high = bracket_rps(setting, spec, 64.0, few, duration_s, safety=False)
    if low <= 0.0:
        return 0.0
    return highest_held_rps(
        setting,
        spec,
        low_rps=low,
        high_rps=high,
        seeds=few,
        duration_s=duration_s,
        safety=False,
        tolerance=0.01,
    )


def _run(
    setting: Setting, spec: PolicySpec, rate_rps: float, seed: int, duration_s: float
) -> SimulationResult:
    rng = stream(seed, f"{setting.name}/{rate_rps:.6g}")
    workload = setting.workload(poisson(rate_rps, duration_s, rng), duration_s, rng)
    return simulate(setting.config(safety=False), workload, spec, seed)


@dataclass(frozen=True)
class PickerJob:
    """Compares endpoint pickers, as a part of an evaluation.

    Attributes:
        profile: costs.
        quality: quality table.
        seeds: evaluation seeds.
    """

    profile: LatencyProfile
    quality: QualityTable
    seeds: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return 3e6 * len(self.seeds)

    def run(self, context: Context) -> list[Row]:
        """Returns a row per fleet and picker."""
        del context  # the study has fleets of its own
        count = len(self.seeds)
        return [
            {
                "fleet": row.fleet,
                "policy": row.policy,
                "picker": row.picker,
                "rate_rps": rounded(row.rate_rps),
                **with_ends("mean_s", row.mean_s, count),
                "p99_s": rounded(row.p99_s),
                **with_ends("latency_saved", row.gain, count),
                **with_ends("availability", row.availability, count),
                **with_ends("performance", row.performance, count),
                "held_rps": rounded(row.held_rps),
            }
            for row in picker_rows(self.profile, self.quality, seeds=self.seeds)
        ]
