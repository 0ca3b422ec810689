"""Is a target held? The cases in which policies used to fall below what always-small keeps.

    python -m trainer.research.promise --record docs/results/promise.md

In each case, for each task: the share missed is to be at most 1.2 x max(1 - target, what
always-small misses) + 0.001. All policies of a case answer the very same requests on the
evaluation's held-out seeds, with the same safety net.

Shape letters: K tasks, N requests.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trainer.evaluation.cases import WARM_UP_S
from trainer.evaluation.facts import usable_cores
from trainer.evaluation.jobs import Context, Runner
from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.research.scale import spec_of
from trainer.research.tuning import add_profile_options, add_study_options, profile_of, run_command
from trainer.simulation.setting import Setting, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import FleetEvent, simulate
from trainer.simulation.workload import poisson, square_wave

SMALL = "static-small"
UNHELD = "dqn, no target"
POLICIES = (SMALL, "price", "debt-queue", UNHELD, "dqn")
SHORTEST_S, LONGEST_S = 6.0, 30.0
STALENESS_S = 0.5

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One policy in one case, at one target and seed.

    Attributes:
        policy: name in the context; UNHELD runs without a target.
        case: for the table.
        load: offered rate, as a multiple of about what static-large holds.
        target: of every task.
        seed: evaluation seed.
        requests: about how many.
        setting: name in the context.
        period_s: of a square wave between 0.4 and 1.6 times the rate; 0 = Poisson.
        routers: number of routers; more than one see each other STALENESS_S late.
        lost: devices lost after a third of the run.
    """

    policy: str
    case: str
    load: float
    target: float
    seed: int
    requests: int
    setting: str = ""
    period_s: float = 0.0
    routers: int = 1
    lost: int = 0

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return float(self.requests)

    def run(self, context: Context) -> Row:
        """Returns the share each task missed and what was earned."""
        setting = context.settings[self.setting]
        rate_rps = self.load * unit_rate_rps(context.settings[""])
        duration_s = min(LONGEST_S, self.requests / rate_rps)
        duration_s = max(SHORTEST_S, 2.2 * self.period_s, duration_s)
        rng = stream(self.seed, f"promise/{self.case}/{self.load:g}")
        if self.period_s:
            low_rps, high_rps = 0.4 * rate_rps, 1.6 * rate_rps
            arrival_N = square_wave(low_rps, high_rps, self.period_s, duration_s, rng)
        else:
            arrival_N = poisson(rate_rps, duration_s, rng)
        workload = setting.workload(arrival_N, duration_s, rng)
        tasks = tuple(replace(each, target=self.target) for each in setting.catalog.tasks)
        config = replace(
            setting.config(safety=True),
            catalog=replace(setting.catalog, tasks=tasks),
            hold_targets=self.policy != UNHELD,
            routers=self.routers,
            staleness_s=STALENESS_S if self.routers > 1 else 0.0,
            events=tuple(FleetEvent(duration_s / 3.0, d, "lost") for d in range(self.lost)),
        )
        result = simulate(config, workload, context.policies[self.policy], self.seed)
        observed_N = result.observed(WARM_UP_S)
        missed_K = []
        for task in range(len(tasks)):
            own_N = observed_N & (workload.task_N == task)
            missed_K.append(float(1.0 - result.on_time_N[own_N].mean()) if own_N.any() else 0.0)
        return {
            "case": self.case,
            "load": self.load,
            "target": self.target,
            "policy": self.policy,
            "seed": self.seed,
            "missed_K": missed_K,
            "availability": result.availability(WARM_UP_S),
            "performance": result.performance(WARM_UP_S),
        }


def settings_of(base: Setting) -> dict[str, Setting]:
    """Returns the worlds of the cases by name."""
    settings = {"": base}
    for factor in (1.3, 1.6):
        profiles = {name: profile.scaled(factor) for name, profile in base.profiles.items()}
        settings[f"{factor:g} times as slow"] = replace(base, profiles=profiles)
    tasks = [task.name for task in base.catalog.tasks]
    for index, task in enumerate(tasks):
        shares = tuple(float(k == index) for k in range(len(tasks)))
        settings[f"{task} alone"] = replace(base, task_share=shares)
    return settings


def trials(
    settings: Mapping[str, Setting],
    targets: Sequence[float],
    seeds: Sequence[int],
    policies: Sequence[str],
    requests: int,
) -> list[Trial]:
    """Returns every policy in every case."""
    first = [
        Trial("", "Poisson", load, 0.0, 0, requests) for load in (1.0, 2.0, 4.0, 8.0, 16.0, 25.0)
    ]
    for period_s in (0.5, 1.0, 2.0, 4.0, 8.0, 30.0):
        for load in (5.0, 10.0, 20.0):
            case = f"square wave, {period_s:g} s"
            first.append(Trial("", case, load, 0.0, 0, requests, period_s=period_s))
    for name in settings:
        loads = (8.0, 10.0) if name.endswith("alone") else (4.0, 8.0, 12.0)
        first += [Trial("", name, load, 0.0, 0, requests, setting=name) for load in loads if name]
    for lost in (1, 2):
        case = f"{lost} of {len(settings[''].fleet.devices)} devices lost"
        first += [Trial("", case, load, 0.0, 0, requests, lost=lost) for load in (4.0, 8.0)]
    first += [
        Trial("", "4 stale routers", load, 0.0, 0, requests, routers=4)
        for load in (4.0, 8.0, 12.0, 20.0)
    ]
    return [
        replace(each, policy=policy, target=target, seed=seed)
        for target in targets
        for each in first
        for policy in policies
        for seed in seeds
    ]


def judged(rows: Sequence[Row]) -> list[Row]:
    """Returns one row per case, load, target and policy: means over seeds, and the verdict."""
    groups: dict[tuple[str, float, float], dict[str, list[Row]]] = {}
    for row in rows:
        key = row["case"], row["load"], row["target"]
        groups.setdefault(key, {}).setdefault(row["policy"], []).append(row)
    found = []
    for (case, load, target), by_policy in groups.items():
        small_K = np.mean([row["missed_K"] for row in by_policy[SMALL]], axis=0)
        limit_K = 1.2 * np.maximum(1.0 - target, small_K) + 0.001
        for policy, own in by_policy.items():
            missed_K = np.mean([row["missed_K"] for row in own], axis=0)
            found.append(
                {
                    "case": case,
                    "load": load,
                    "target": target,
                    "policy": policy,
                    "held": bool((missed_K <= limit_K).all()),
                    "availability": float(np.mean([row["availability"] for row in own])),
                    "performance": float(np.mean([row["performance"] for row in own])),
                }
            )
    return found


def table(rows: Sequence[Row], policies: Sequence[str], target: float) -> str:
    """Returns the table of one target in Markdown: in time / performance, bold where missed."""
    lines = [
        "| case | load | " + " | ".join(policies) + " |",
        "|---" * (len(policies) + 2) + "|",
    ]
    cells = {(row["case"], row["load"], row["policy"]): row for row in rows}
    for case, load in dict.fromkeys((row["case"], row["load"]) for row in rows):
        line = [case, f"{load:g}x"]
        for policy in policies:
            row = cells[case, load, policy]
            text = f"{row['availability']:.4f} / {row['performance']:.3f}"
            line.append(text if row["held"] else f"**{text}**")
        lines.append("| " + " | ".join(line) + " |")
    missed = [
        str(sum(not row["held"] for row in rows if row["policy"] == policy)) for policy in policies
    ]
    mean = [
        f"{np.mean([row['performance'] for row in rows if row['policy'] == policy]):.3f}"
        for policy in policies
    ]
    lines.append("| *cases missed* | | " + " | ".join(missed) + " |")
    lines.append("| *mean performance* | | " + " | ".join(mean) + " |")
    return f"## Target {target:g}\n\n" + "\n".join(lines) + "\n"


def page(rows: Sequence[Row], policies: Sequence[str], command: str) -> str:
    """Returns the document."""
    head = f"""# Targets: held or not

For readers who decide by targets. Each cell is the share in time and the performance, the safety
net on. A case is **missed** (bold) where, for some task, the share late or refused is above
1.2 x max(1 - target, what always-small misses) + 0.001. Load 1x is about what static-large holds. A
square wave goes between 0.4 and 1.6 times its mean rate. `{UNHELD}` is the same network with
admission alone, as before [ADR 20](../adr/0020-a-target-is-held-by-a-pressure-on-the-price.md).

From `{command}`.
"""
    targets = dict.fromkeys(row["target"] for row in rows)
    parts = [table([r for r in rows if r["target"] == t], policies, t) for t in targets]
    return head + "\n" + "\n".join(parts)


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(prog="python -m trainer.research.promise", description=__doc__)
    add_profile_options(found)
    found.add_argument("--targets", default="0.9,0.99,0.999")
    add_study_options(found, "", "besides static-small; none = all")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases."""
    given = sys.argv[1:] if argv is None else list(argv)
    return run_command(lambda: _run(parser().parse_args(given), given))


def _run(asked: argparse.Namespace, given: Sequence[str]) -> None:
    profile, quality = profile_of(asked)
    base = shared_fleet_setting(profile.name, profile, quality)
    settings = settings_of(base)
    chosen = [name for name in asked.policies.split(",") if name]
    policies = tuple(dict.fromkeys((SMALL, *chosen))) if chosen else POLICIES
    specs = {name: spec_of("dqn" if name == UNHELD else name, base) for name in policies}
    targets = [float(text) for text in asked.targets.split(",")]
    seeds = evaluation_seeds(asked.seeds)
    jobs = trials(settings, targets, seeds, policies, asked.requests)

    def say(_text: str, done: float, total: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{100.0 * done / total:3.0f} %", end="", file=sys.stderr)

    with Runner(Context(settings, specs), asked.workers or usable_cores(), say) as runner:
        rows = runner.run("cases", jobs)
    found = judged(rows)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    command = shlex.join(["python", "-m", "trainer.research.promise", *given])
    text = page(found, policies, command)
    if asked.record:
        asked.record.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    sys.exit(main())
