"""What it is worth that routers know of conversations, in the simulator.

    python -m trainer.research.conversations

Every row of a load and seed answers the very same requests: those of conversations, whose prompts
grow by what was said before. Three kinds of routers are compared on devices with a prefix cache:
those that are told of no conversations, those that take cached prefixes into account and keep
nobody's seat, and those that do both, with one margin or several (`router.seat`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from router.fleet import build_fleet
from router.profile import LatencyProfile
from router.seat import MARGIN, Stay
from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.research.scale import mean, paired, points, spec_of
from trainer.research.studies import numbers
from trainer.research.tuning import TuningError, add_profile_options, profile_of, run_command
from trainer.simulation.conversations import OPT_TALK, converse
from trainer.simulation.setting import Setting, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import SimulationConfig, SimulationResult, simulate

WARM_UP_S = 4.0
"""Left out at the start: nobody remembers a conversation yet, and no cache has one."""
UNTOLD = "not told"
PREFIXES = "prefixes"
"""Names of the routers without conversations, and of those that keep nobody's seat."""

Row = dict[str, Any]


def cached(setting: Setting, tokens: int) -> Setting:
    """Returns the setting with room for so many tokens of prefixes in every tier."""
    profiles = {}
    for name, profile in setting.profiles.items():
        tiers = {t: replace(p, prefix_cache_tokens=tokens) for t, p in profile.tiers.items()}
        profiles[name] = LatencyProfile(profile.name, profile.source, tiers, profile.description)
    fleet = build_fleet(setting.catalog, setting.fleet.endpoints, profiles)
    return replace(setting, fleet=fleet, profiles=profiles)


def kinds(margins: Sequence[float], config: SimulationConfig) -> dict[str, SimulationConfig]:
    """Returns the kinds of routers by name."""
    found = {UNTOLD: replace(config, conversation_margin=-1.0)}
    # No choice is worth less than another by as much as this: nobody is kept but where all is even.
    found[PREFIXES] = replace(config, conversation_margin=0.0)
    for margin in margins:
        found[f"margin {margin:g}"] = replace(config, conversation_margin=margin)
    return found


def shares(result: SimulationResult, setting: Setting) -> Row:
    """Returns how conversations fared: requests that followed another one of theirs, and hits."""
    workload = result.workload
    conversation_N = workload.conversation_N
    assert conversation_N is not None
    order_N = np.lexsort((workload.arrival_N, conversation_N))
    before_N, after_N = order_N[:-1], order_N[1:]
    both_N = conversation_N[before_N] == conversation_N[after_N]
    both_N &= (result.tier_N[before_N] >= 0) & (result.tier_N[after_N] >= 0)
    both_N &= workload.arrival_N[before_N] >= WARM_UP_S
    before_N, after_N = before_N[both_N], after_N[both_N]
    observed_N = result.observed(WARM_UP_S)
    stays = np.bincount(result.stay_N[observed_N], minlength=len(Stay))
    row: Row = {
        "same_tier": float(np.mean(result.tier_N[before_N] == result.tier_N[after_N])),
        "hit": float(result.hit_N[observed_N].sum() / workload.prompt_N[observed_N].sum()),
        "expected": float(
            result.expected_N[observed_N].sum() / workload.prompt_N[observed_N].sum()
        ),
    }
    return row | {stay.name.lower(): int(stays[stay]) for stay in Stay}


def study(setting: Setting, options: argparse.Namespace, say: Callable[[Row], None]) -> list[Row]:
    """Returns every load, seed, policy and kind of router."""
    rows = []
    unit_rps = unit_rate_rps(setting)
    setting = cached(setting, options.cache_tokens)
    base = replace(
        setting.config(),
        routers=options.routers,
        staleness_s=options.staleness_s if options.routers > 1 else 0.0,
        are_conversations_homed=not options.without_affinity,
    )
    for load in options.loads:
        for seed in evaluation_seeds(options.seeds):
            workload = converse(
                load * unit_rps,
                options.duration_s,
                rng=stream(seed, f"conversations/{load:.6g}"),
                deadline_s=[task.default_deadline_s for task in setting.catalog.tasks],
                task_share=setting.shares,
                talk=OPT_TALK,
            )
            for policy in options.policies:
                spec = spec_of(policy, setting)
                for kind, config in kinds(options.margins, base).items():
                    result = simulate(config, workload, spec, seed)
                    row = {
                        "policy": policy,
                        "kind": kind,
                        "load": load,
                        "seed": seed,
                        "requests": len(workload),
                        "availability": result.availability(WARM_UP_S),
                        "performance": result.performance(WARM_UP_S),
                        **shares(result, setting),
                    }
                    rows.append(row)
                    say(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """Returns means over seeds, and the difference to routers that are not told, in Markdown."""
    heads = ("in time", "performance", "less not told, points", "same tier", "cached", "expected")
    lines = [f"| load | policy | routers | {' | '.join(heads)} |", "|---" * 9 + "|"]
    for load in dict.fromkeys(row["load"] for row in rows):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            for kind in dict.fromkeys(row["kind"] for row in rows):
                at = {"load": load, "policy": policy, "kind": kind}
                gain = points(paired(rows, "performance", at, {**at, "kind": UNTOLD}))
                cells = [
                    f"{mean(rows, column, **at):.3f}"
                    for column in ("availability", "performance", "same_tier", "hit", "expected")
                ]
                lines.append(
                    f"| {load:g} | {policy} | {kind} | {cells[0]} | {cells[1]} | {gain} |"
                    f" {' | '.join(cells[2:])} |"
                )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(
        prog="python -m trainer.research.conversations", description=__doc__
    )
    add_profile_options(found)
    found.add_argument("--devices", type=int, default=4)
    found.add_argument("--loads", type=numbers, default=(4.0,))
    found.add_argument("--seeds", type=int, default=5)
    found.add_argument("--duration-s", type=float, default=24.0)
    found.add_argument(
        "--policies", type=lambda text: text.split(","), default=["dqn", "price", "greedy"]
    )
    found.add_argument("--margins", type=numbers, default=(MARGIN,))
    found.add_argument(
        "--cache-tokens", type=int, default=200_000, help="of each tier on each device"
    )
    found.add_argument("--routers", type=int, default=1)
    found.add_argument("--staleness-s", type=float, default=0.08, help="age of a fresh report")
    found.add_argument(
        "--without-affinity",
        action="store_true",
        help="each request of a conversation comes through any of the routers",
    )
    found.add_argument("--json", type=Path, help="where to write the rows")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs the study; prints its table, and writes the rows where asked to."""
    options = parser().parse_args(arguments)

    def say(row: Row) -> None:
        print(json.dumps(row), file=sys.stderr, flush=True)

    def work() -> None:
        if options.seeds < 1 or options.duration_s <= WARM_UP_S or options.devices < 1:
            raise TuningError(f"--seeds and --devices from 1, --duration-s above {WARM_UP_S}")
        profile, quality = profile_of(options)
        setting = shared_fleet_setting(profile.name, profile, quality, device_count=options.devices)
        rows = study(setting, options, say)
        print(table(rows))
        if options.json:
            facts = {"setting": setting.facts(), "warm_up_s": WARM_UP_S, "rows": rows}
            options.json.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
