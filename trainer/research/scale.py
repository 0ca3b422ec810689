"""What large fleets and many routers cost in quality, in the simulator.

    python -m trainer.research.scale shortlist      the network on a shortlist beside all candidates
    python -m trainer.research.scale routers        1 to 64 routers at the same total load

Requests are those of the evaluation's setting, Poisson, on its held-out seeds. All rows of a load
and seed answer the very same requests, so their differences are paired.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from router.home import WHOLE
from router.picker import PICKERS
from router.policies.table import DQN, PICKER_MARK, STATIC_PREFIX, base_name
from trainer.evaluation.policies import baseline, learned
from trainer.evaluation.report.figures import WIDTH_IN
from trainer.evaluation.report.policy_lines import Palette
from trainer.evaluation.report.style import STYLE, save
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.seeds import evaluation_seeds, stream
from trainer.evaluation.statistics import Interval, interval
from trainer.research.studies import numbers
from trainer.research.tuning import TuningError, add_profile_options, profile_of, run_command
from trainer.shipped import POLICIES, shipped
from trainer.simulation.setting import Setting, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import PolicySpec, SimulationConfig, simulate

WARM_UP_S = 0.5
"""Left out at the start: routers have no estimate of the rate yet."""
POLICIES_OF_ROUTERS = "dqn,price,static-small"
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "shortlist": {"devices": 64, "loads": "2,4,8,12", "seeds": 5, "duration_s": 6.5},
    "routers": {"devices": 1000, "loads": "4", "seeds": 2, "duration_s": 2.5},
}
ALL, LISTED = "all candidates", "shortlist"

Row = dict[str, Any]
Say = Callable[[Row], None]


def spec_of(name: str, setting: Setting) -> PolicySpec:
    """Returns a policy of an evaluation by name; `dqn` is the snapshot shipped for the profile."""
    base = base_name(name)
    if base == DQN:
        file = shipped(POLICIES, f"{setting.name}.safetensors")
        spec = learned(file.read_bytes(), setting.catalog, file.name)[0].spec
    else:
        spec = baseline(base, setting.catalog).spec
    picker = name.partition(PICKER_MARK)[2]
    return replace(spec, name=name, picker=PICKERS[picker] if picker else spec.picker)


def run(
    setting: Setting, config: SimulationConfig, spec: PolicySpec, load: float, seed: int, s: float
) -> Row:
    """Returns what one policy makes of one workload."""
    rate_rps = load * unit_rate_rps(setting)
    rng = stream(seed, f"scale/{load:.6g}")
    workload = setting.workload(SCENARIOS["poisson"].make(rate_rps, s, rng), s, rng)
    start_s = time.process_time()
    result = simulate(config, workload, spec, seed)
    return {
        "policy": spec.name,
        "load": load,
        "seed": seed,
        "routers": config.routers,
        "requests": len(workload),
        "availability": result.availability(WARM_UP_S),
        "performance": result.performance(WARM_UP_S),
        "cpu_s": time.process_time() - start_s,
    }


def shortlist_rows(setting: Setting, options: argparse.Namespace, say: Say) -> list[Row]:
    """Returns every load and seed with the shortlist and without."""
    spec = spec_of(DQN, setting)
    rows = []
    for load in options.loads:
        for seed in evaluation_seeds(options.seeds):
            for name, listed in ((ALL, False), (LISTED, True)):
                config = replace(setting.config(), shortlist=listed)
                row = run(setting, config, replace(spec, name=name), load, seed, options.duration_s)
                rows.append(row)
                say(row)
    return rows


def router_rows(setting: Setting, options: argparse.Namespace, say: Say) -> list[Row]:
    """Returns every policy, load, seed and number of routers."""
    rows = []
    for seed in evaluation_seeds(options.seeds):
        for load in options.loads:
            for name in options.policies:
                spec = spec_of(name, setting)
                for routers in options.routers:
                    config = replace(
                        setting.config(),
                        routers=routers,
                        staleness_s=options.staleness_s,
                        report_interval_s=options.interval_s,
                        homes=(WHOLE,) * routers if options.without_homes else None,
                    )
                    row = run(setting, config, spec, load, seed, options.duration_s)
                    rows.append(row)
                    say(row)
    return rows


def paired(rows: Sequence[Row], column: str, chosen: Row, beside: Row) -> Interval:
    """Returns the difference in points of the rows that match `chosen` to those of `beside`."""

    def found(wanted: Row) -> list[float]:
        of_seed = {r["seed"]: r[column] for r in rows if all(r[k] == wanted[k] for k in wanted)}
        return [of_seed[seed] for seed in sorted(of_seed)]

    return interval(
        100.0 * (ours - theirs) for ours, theirs in zip(found(chosen), found(beside), strict=True)
    )


def mean(rows: Sequence[Row], column: str, **wanted: Any) -> float:
    """Returns a column's mean over the rows that match."""
    values = [row[column] for row in rows if all(row[k] == wanted[k] for k in wanted)]
    return float(np.mean(values))


def shortlist_table(rows: Sequence[Row]) -> str:
    """Returns what the shortlist costs at each load, in Markdown."""
    lines = [
        "| load | performance, all candidates | shortlist less all, points | in time, points |",
        "|---|---|---|---|",
    ]
    for load in dict.fromkeys(row["load"] for row in rows):
        pair = ({"policy": LISTED, "load": load}, {"policy": ALL, "load": load})
        whole = mean(rows, "performance", policy=ALL, load=load)
        cells = [points(paired(rows, column, *pair)) for column in ("performance", "availability")]
        lines.append(f"| {load:g} | {whole:.4f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def router_table(rows: Sequence[Row]) -> str:
    """Returns performance by number of routers, and what the most lose, in Markdown."""
    routers = list(dict.fromkeys(row["routers"] for row in rows))
    heads = " | ".join(f"{r} router{'s'[: r > 1]}" for r in routers)
    lines = [
        f"| load | policy | {heads} | {routers[-1]} less {routers[0]}, points |",
        "|---" * (3 + len(routers)) + "|",
    ]
    for load in dict.fromkeys(row["load"] for row in rows):
        for policy in dict.fromkeys(row["policy"] for row in rows):
            at = {"policy": policy, "load": load}
            cells = [
                f"{mean(rows, 'availability', **at, routers=r):.3f} / "
                f"{mean(rows, 'performance', **at, routers=r):.3f}"
                for r in routers
            ]
            ends = ({**at, "routers": routers[-1]}, {**at, "routers": routers[0]})
            lost = points(paired(rows, "performance", *ends))
            lines.append(f"| {load:g} | {policy} | {' | '.join(cells)} | {lost} |")
    return "\n".join(lines)


def points(value: Interval) -> str:
    """Returns a difference in points with its interval."""
    return f"{value.mean:+.2f} ± {value.half:.2f}"


def router_figure(rows: Sequence[Row]) -> Figure:
    """Performance and availability over the number of routers, a line per policy."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    routers = list(dict.fromkeys(row["routers"] for row in rows))
    load = rows[0]["load"]
    palette = Palette(policies, DQN, STATIC_PREFIX + "small", STATIC_PREFIX + "large")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharex=True)
        for axes, column in zip(panels, ("performance", "availability"), strict=True):
            for policy in policies:
                curve = [mean(rows, column, policy=policy, load=load, routers=r) for r in routers]
                axes.plot(routers, curve, marker="o", ms=4, **palette.line(policy))
            axes.set_xscale("log", base=2)
            axes.set_xticks(routers, [str(r) for r in routers])
            axes.set_ylim(0.0, 1.02)
            axes.set_xlabel("routers, same total load")
            axes.set_title(column)
        panels[0].legend(fontsize=8, loc="lower left")
    return figure


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    found = argparse.ArgumentParser(prog="python -m trainer.research.scale", description=__doc__)
    studies = found.add_subparsers(dest="study", required=True)
    for name, defaults in DEFAULTS.items():
        study = studies.add_parser(name)
        add_profile_options(study)
        study.add_argument("--devices", type=int, default=defaults["devices"])
        study.add_argument("--loads", type=numbers, default=numbers(defaults["loads"]))
        study.add_argument("--seeds", type=int, default=defaults["seeds"])
        study.add_argument("--duration-s", type=float, default=defaults["duration_s"])
        study.add_argument("--json", type=Path, help="where to write the rows")
    study.add_argument("--routers", type=_counts, default=(1, 4, 16, 64))
    study.add_argument(
        "--policies", type=lambda text: text.split(","), default=POLICIES_OF_ROUTERS.split(",")
    )
    study.add_argument("--staleness-s", type=float, default=0.08, help="age of a fresh report")
    study.add_argument("--interval-s", type=float, default=0.08, help="time between reports")
    study.add_argument(
        "--without-homes", action="store_true", help="every router chooses among all devices"
    )
    study.add_argument("--plot", type=Path, help="stem of a .png and .svg")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Runs a study; prints its table, and writes rows and plot where asked to."""
    options = parser().parse_args(arguments)

    def say(row: Row) -> None:
        print(json.dumps(row), file=sys.stderr, flush=True)

    def work() -> None:
        if options.seeds < 1 or not options.duration_s > WARM_UP_S or options.devices < 1:
            raise TuningError(f"--seeds and --devices from 1, --duration-s above {WARM_UP_S}")
        profile, quality = profile_of(options)
        setting = shared_fleet_setting(profile.name, profile, quality, device_count=options.devices)
        rows = (shortlist_rows if options.study == "shortlist" else router_rows)(
            setting, options, say
        )
        print((shortlist_table if options.study == "shortlist" else router_table)(rows))
        if options.json:
            facts = {"setting": setting.facts(), "warm_up_s": WARM_UP_S, "rows": rows}
            options.json.write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
        if options.study == "routers" and options.plot:
            save(router_figure(rows), options.plot)

    return run_command(work)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
