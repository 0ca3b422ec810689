"""What it costs that traffic stops for a while and comes back, in the simulator.

    python -m trainer.research.pause

The setting is that of the live proof: four routers before four devices, reports 80 ms old and more.
Poisson traffic runs for two seconds, stops, and comes back as it was; what counts is the time
after. A pause of 0 shows what steady traffic gets there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.research.scale import mean, spec_of
from trainer.research.studies import numbers
from trainer.research.tuning import TuningError, add_profile_options, profile_of, run_command
from trainer.simulation.setting import Setting, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import simulate
from trainer.simulation.workload import Workload, piecewise

BEFORE_S, AFTER_S = 2.0, 1.2
STALENESS_S, INTERVAL_S = 0.08, 0.1

Row = dict[str, Any]


def rows_of(setting: Setting, options: argparse.Namespace) -> list[Row]:
    """Returns every policy, load, pause and seed."""
    rows = []
    for load in options.loads:
        rate_rps = load * unit_rate_rps(setting)
        for pause_s in options.pauses:
            for seed in evaluation_seeds(options.seeds):
                rng = stream(seed, f"pause/{load:.6g}/{pause_s:.6g}")
                pieces = [(BEFORE_S, rate_rps), (pause_s, 0.0), (AFTER_S, rate_rps)]
                whole_s = BEFORE_S + pause_s + AFTER_S
                workload = setting.workload(piecewise(pieces, rng), whole_s, rng)
                for name in options.policies:
                    rows.append(_row(setting, options.routers, workload, name, seed))
                    rows[-1] |= {"load": load, "pause_s": pause_s}
                    print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _row(setting: Setting, routers: int, workload: Workload, name: str, seed: int) -> Row:
    config = replace(
        setting.config(), routers=routers, staleness_s=STALENESS_S, report_interval_s=INTERVAL_S
    )
    result = simulate(config, workload, spec_of(name, setting), seed)
    after_s = workload.duration_s - AFTER_S
    mix_T = np.bincount(
        np.maximum(result.tier_N[workload.arrival_N >= after_s], 0),
        minlength=len(setting.fleet.tiers),
    )
    return {
        "policy": name,
        "seed": seed,
        "availability": result.availability(after_s),
        "performance": result.performance(after_s),
        "largest_share": float(mix_T[-1] / mix_T.sum()),
    }


def table(rows: Sequence[Row]) -> str:
    """Returns availability and performance by load, policy and pause, in Markdown."""
    pauses = list(dict.fromkeys(row["pause_s"] for row in rows))
    lines = [
        f"| load | policy | {' | '.join(f'pause {pause:g} s' for pause in pauses)} |",
        "|---" * (2 + len(pauses)) + "|",
    ]
    for load in dict.fromkeys(row["load"] for row in rows):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            at = {"load": load, "policy": policy}
            cells = [
                f"{mean(rows, 'availability', **at, pause_s=pause):.3f}/"
                f"{mean(rows, 'performance', **at, pause_s=pause):.3f}"
                for pause in pauses
            ]
            lines.append(f"| {load:g} | {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Runs the study; prints its table, and writes the rows where asked to."""
    parser = argparse.ArgumentParser(prog="python -m trainer.research.pause", description=__doc__)
    add_profile_options(parser)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--routers", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--loads", type=numbers, default=(4.6, 9.2))
    parser.add_argument("--pauses", type=numbers, default=(0.0, 0.2, 0.4, 1.0, 3.0))
    parser.add_argument("--policies", type=lambda text: text.split(","), default=["price", "dqn"])
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args(arguments)

    def work() -> None:
        if min(options.seeds, options.devices, options.routers) < 1:
            raise TuningError("--seeds, --devices and --routers from 1")
        if not all(load > 0.0 for load in options.loads) or min(options.pauses) < 0.0:
            raise TuningError("--loads must be above 0, --pauses from 0")
        profile, quality = profile_of(options)
        setting = shared_fleet_setting(profile.name, profile, quality, device_count=options.devices)
        rows = rows_of(setting, options)
        print(table(rows))
        if options.json:
            text = json.dumps({"setting": setting.facts(), "rows": rows}, indent=1) + "\n"
            options.json.write_text(text, "utf-8")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
