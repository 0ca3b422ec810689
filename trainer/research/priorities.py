"""Priority classes: what each class gains or loses by them, and what they cost together.

    python -m trainer.research.priorities --record docs/results/priorities.md

Poisson traffic through the simulator, safety net on, targets held. Every case is run twice on the
evaluation's held-out seeds: with classes drawn for its requests (`router/priority.py`), and as if
all of them were normal. Both answer the very same requests, so each class is compared with itself.

Shape letters: N requests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from router.priority import CAUTION, OWED, PRICE
from router.types import Priority
from trainer.evaluation.jobs import Context
from trainer.evaluation.scenarios import WARM_UP_S
from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.research.scale import spec_of
from trainer.research.studies import add_study_options, command_of, keep, run_jobs
from trainer.research.tuning import add_profile_options, profile_of, run_command
from trainer.simulation import state
from trainer.simulation.setting import shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import simulate
from trainer.simulation.workload import poisson

LOADS = (1.0, 4.0, 8.0, 40.0)
SHORTEST_S = 6.0
ALL = "all"
"""Row of all classes together."""
_SCORES = ("performance", "in_time", "refused")

Row = dict[Any, Any]


@dataclass(frozen=True)
class Trial:
    """One case with one seed, with classes and without.

    Attributes:
        policy: name in the context.
        load: offered rate, as a multiple of about what static-large holds.
        mix: share of high, normal and low.
        seed: evaluation seed.
        requests: about how many.
    """

    policy: str
    load: float
    mix: tuple[float, float, float]
    seed: int
    requests: int

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return 2.0 * self.requests

    def run(self, context: Context) -> Row:
        """Returns the scores of each class and of all, with classes and without."""
        setting = context.settings[""]
        rate_rps = self.load * unit_rate_rps(setting)
        duration_s = max(SHORTEST_S, self.requests / rate_rps)
        rng = stream(self.seed, f"priorities/{self.load:g}")
        workload = setting.workload(poisson(rate_rps, duration_s, rng), duration_s, rng)
        mixed = workload.with_classes(self.mix, rng)
        found: Row = {"policy": self.policy, "load": self.load}
        for key, offered in (("with", mixed), ("without", replace(mixed, place_N=None))):
            result = simulate(setting.config(), offered, context.policies[self.policy], self.seed)
            observed_N = result.observed(WARM_UP_S)
            for name in (ALL, *(each.label for each in Priority)):
                chosen_N = observed_N
                if name != ALL:
                    chosen_N = observed_N & (mixed.place_N == Priority[name.upper()])
                if not chosen_N.any():
                    continue
                found[key, name] = (
                    float(result.reward_N[chosen_N].mean()),
                    float(result.on_time_N[chosen_N].mean()),
                    float((result.status_N[chosen_N] == state.REFUSED).mean()),
                )
        return found


def averaged(rows: Sequence[Row]) -> list[Row]:
    """Returns the means over seeds: a row for each policy, load and class."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["policy"], row["load"]), []).append(row)
    found = []
    for (policy, load), own in groups.items():
        for name in (*(each.label for each in Priority), ALL):
            if ("with", name) not in own[0]:
                continue
            mean: Row = {"policy": policy, "load": load, "class": name}
            for key in ("with", "without"):
                values = np.mean([row[key, name] for row in own], axis=0).tolist()
                mean |= {f"{score}_{key}": v for score, v in zip(_SCORES, values, strict=True)}
            found.append(mean)
    return found


def table(rows: Sequence[Row], policy: str) -> str:
    """Returns the table of one policy in Markdown."""
    columns = ["load", "class"]
    for score in _SCORES:
        columns += [f"{score.replace('_', ' ')} without", "with"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        if row["policy"] != policy:
            continue
        cells = [f"{row['load']:g}x", row["class"]]
        for score in _SCORES:
            cells += [f"{row[f'{score}_{key}']:.3f}" for key in ("without", "with")]
        lines.append(f"| {' | '.join(cells)} |")
    return f"## {policy}\n\n" + "\n".join(lines) + "\n"


def page(rows: Sequence[Row], policies: Sequence[str], mix: Sequence[float], command: str) -> str:
    """Returns the document."""
    high, normal, low = (100.0 * each / sum(mix) for each in mix)
    head = f"""# Priority classes

For operators who hand out priorities. {high:.0f} % of the requests are high, {normal:.0f} % normal,
{low:.0f} % low; traffic is Poisson. Load 1x is about what static-large holds. "Without" are the
same requests, all normal. Device time costs a class exp({PRICE:g}) times as much as the one above
it. At admission predictions count up to exp({CAUTION:g}) times as much. Of each class at least
{OWED:g} times the share of all requests is admitted.

From `{command}`.
"""
    return head + "\n" + "\n".join(table(rows, policy) for policy in policies)


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(
        prog="python -m trainer.research.priorities", description=__doc__
    )
    add_profile_options(found)
    found.add_argument("--mix", default="0.2,0.6,0.2", help="share of high, normal and low")
    found.add_argument("--loads", default=",".join(f"{each:g}" for each in LOADS))
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
    high, normal, low = map(float, asked.mix.split(","))
    jobs = [
        Trial(policy, float(load), (high, normal, low), seed, asked.requests)
        for policy in policies
        for load in asked.loads.split(",")
        for seed in evaluation_seeds(asked.seeds)
    ]
    context = Context({"": base}, {name: spec_of(name, base) for name in policies})
    found = averaged(run_jobs(asked, context, jobs))
    command = command_of("priorities", given)
    text = page(found, policies, (high, normal, low), command)
    keep(asked, found, text)


if __name__ == "__main__":
    sys.exit(main())
