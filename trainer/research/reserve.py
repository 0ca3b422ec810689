"""Room for returning bursts: what it costs in calm, and what it brings when they return.

    python -m trainer.research.reserve --record docs/results/reserve.md

Square waves and steady traffic through the simulator, once for each `reserve` of the routers'
settings (`router/reserve.py`). All settings of a case answer the very same requests on the
evaluation's held-out seeds, safety net on, targets held.

Shape letters: N requests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router.reserve import SHARES
from trainer.evaluation.jobs import Context
from trainer.evaluation.scenarios import WARM_UP_S, whole_periods_s
from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.research.scale import spec_of
from trainer.research.studies import add_study_options, command_of, keep, run_jobs
from trainer.research.tuning import add_profile_options, profile_of, run_command
from trainer.simulation.setting import shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import simulate
from trainer.simulation.workload import poisson, square_wave

PERIODS_S = (0.0, 1.0, 2.0, 4.0, 8.0, 30.0)
LOADS = (5.0, 10.0)
LOW, HIGH = 0.4, 1.6
LONGEST_S, SHORTEST_S = 30.0, 6.0
PERIODS = 4.2
RETURNING_S = 0.4
"""How long a burst counts as one that returns: a deadline."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One setting in one case, with one seed.

    Attributes:
        reserve: name of the setting.
        policy: name in the context.
        period_s: of a square wave between LOW and HIGH times the rate; 0 = Poisson.
        load: offered rate, as a multiple of about what static-large holds.
        target: of every task.
        seed: evaluation seed.
        requests: about how many.
    """

    reserve: str
    policy: str
    period_s: float
    load: float
    target: float
    seed: int
    requests: int

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return float(self.requests)

    def run(self, context: Context) -> Row:
        """Returns what was in time and what was earned, in calm and when bursts returned."""
        setting = context.settings[""]
        rate_rps, period_s = self.load * unit_rate_rps(setting), self.period_s
        duration_s = min(LONGEST_S, self.requests / rate_rps)
        duration_s = max(SHORTEST_S, PERIODS * period_s, duration_s)
        rng = stream(self.seed, f"reserve/{period_s:g}/{self.load:g}")
        if period_s:
            duration_s = whole_periods_s(duration_s, period_s)
            low_rps, high_rps = LOW * rate_rps, HIGH * rate_rps
            arrival_N = square_wave(low_rps, high_rps, period_s, duration_s, rng)
        else:
            arrival_N = poisson(rate_rps, duration_s, rng)
        workload = setting.workload(arrival_N, duration_s, rng)
        tasks = tuple(replace(each, target=self.target) for each in setting.catalog.tasks)
        config = replace(
            setting.config(safety=True),
            catalog=replace(setting.catalog, tasks=tasks),
            reserve=SHARES[self.reserve],
        )
        result = simulate(config, workload, context.policies[self.policy], self.seed)
        observed_N = result.observed(WARM_UP_S)
        into_N = np.full(len(workload), -1.0)  # time since the present burst began, seconds
        if period_s:
            into_N = workload.arrival_N % period_s - 0.5 * period_s
        calm_N = observed_N & (into_N < 0.0)
        # The first burst had none before it.
        back_N = observed_N & (into_N >= 0.0) & (into_N < RETURNING_S)
        back_N &= workload.arrival_N >= period_s
        return {
            "reserve": self.reserve,
            "policy": self.policy,
            "period_s": period_s,
            "load": self.load,
            "in_time": result.availability(WARM_UP_S),
            "performance": result.performance(WARM_UP_S),
            "calm_performance": float(result.reward_N[calm_N].mean()),
            "back_in_time": float(result.on_time_N[back_N].mean()) if back_N.any() else None,
        }


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Returns the means over seeds."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    keys = ("policy", "period_s", "load", "reserve")
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for key, own in groups.items():
        mean = dict(zip(keys, key, strict=True))
        for name in ("in_time", "performance", "calm_performance", "back_in_time"):
            values = [row[name] for row in own if row[name] is not None]
            mean[name] = float(np.mean(values)) if values else None
        found.append(mean)
    return found


def table(rows: Sequence[Row], policy: str) -> str:
    """Returns the table of one policy in Markdown."""
    lines = [
        "| traffic | load | reserve | in time | in time as bursts return | performance | in calm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["policy"] != policy:
            continue
        wave = f"square wave, {row['period_s']:g} s" if row["period_s"] else "Poisson"
        back = "-" if row["back_in_time"] is None else f"{row['back_in_time']:.4f}"
        calm = f"{row['calm_performance']:.3f}" if row["period_s"] else "-"
        lines.append(
            f"| {wave} | {row['load']:g}x | {row['reserve']} | {row['in_time']:.4f} | {back} "
            f"| {row['performance']:.3f} | {calm} |"
        )
    return f"## {policy}\n\n" + "\n".join(lines) + "\n"


def page(rows: Sequence[Row], policies: Sequence[str], target: float, command: str) -> str:
    """Returns the document."""
    head = f"""# Room for returning bursts

For operators who choose `router_inference.reserve`. A square wave goes between {LOW:g} and {HIGH:g}
times its mean rate; load 1x is about what static-large holds; the target is {target:g}. "As bursts
return" is the first {RETURNING_S:g} s of every burst but the first; "in calm" is the performance
between bursts.

From `{command}`.
"""
    return head + "\n" + "\n".join(table(rows, policy) for policy in policies)


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(prog="python -m trainer.research.reserve", description=__doc__)
    add_profile_options(found)
    found.add_argument("--target", type=float, default=0.99)
    add_study_options(found, "dqn,price")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _run(parser().parse_args(given), given))


def _run(asked: argparse.Namespace, given: Sequence[str]) -> None:
    profile, quality = profile_of(asked)
    base = shared_fleet_setting(profile.name, profile, quality)
    policies = asked.policies.split(",")
    specs = {name: spec_of(name, base) for name in policies}
    jobs = [
        Trial(reserve, policy, period_s, load, asked.target, seed, asked.requests)
        for policy in policies
        for period_s in PERIODS_S
        for load in LOADS
        for reserve in SHARES
        for seed in evaluation_seeds(asked.seeds)
    ]
    found = averaged(run_jobs(asked, Context({"": base}, specs), jobs))
    command = command_of("reserve", given)
    text = page(found, policies, asked.target, command)
    keep(asked, found, text)


if __name__ == "__main__":
    sys.exit(main())
