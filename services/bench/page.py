"""Writes the tables and plots of pages in docs: `python -m services.bench.page`.

From the reports in docs/results. For performance.md: `bench.json` (`tiercel bench --suite full
--out`), `live-proof.json`, the same at a lower rate (`live-proof-slower.json`), and `outside.json`.
For doors.md: `aiperf.json`. A report that is missing leaves its table as it is. Reports of some
metrics (`--only`) given as arguments are merged into `bench.json` first.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from router.folders import checkout
from services.bench import aiperf, live_report, outside, readings
from services.bench.budgets import BUDGETS, DOORS, FIRST_TOKENS, LOADS, PERCENTILES, first_token
from trainer.evaluation.report.style import AMBER, BLUE, GREEN, RED, STYLE, VIOLET

Report = Mapping[str, Any]
GROWTH_PNG = "performance-growth.png"
LINES = {"dqn": BLUE, "price": AMBER}
DEVICES, DEVICE_RPS = 1_000, (1, 10, 100, 445)
"""A fleet, and rates per device; the last is load 1x of the live proof."""
STATES_PER_S = 12.5
ROUTER_SHARE = 0.7
"""Share of its core that a router is given to use."""
STATE_PANELS = {
    "router": ("Router, share of a core", "candidates", GREEN),
    "bytes": ("Bytes per state", "candidates", VIOLET),
    "monitor": ("Monitor, share of a core", "routers, 64 endpoints", RED),
}
"""Title, size and color of each line of the shared picture."""
WIDTH_IN, HEIGHT_IN = 11.5, 4.2
FITTED = {
    "router": ("a router's share of a core", "candidate", "candidates"),
    "bytes": ("bytes of a state", "candidate", "candidates"),
    "monitor": ("the monitor's share of a core, 64 endpoints", "router", "routers"),
}
"""What a straight line is laid through, what it grows with, and the same as a plural."""
BEYOND = {"router": ("state_256x1024", 3_072, "value"), "bytes": ("state_256x1024", 3_072, "bytes")}
"""Metric and size that a line through the smaller sizes is held against."""
LEAST_SIZES = 3
"""Sizes that a line needs before it can be wrong."""


def budget_table(report: Report) -> str:
    """Returns the budgets, one row per metric, and below them where each was made."""
    metrics = _of_budgets(report)
    runs: dict[str, list[str]] = {}
    for name, each in metrics.items():
        runs.setdefault(_run_of(each, report), []).append(name)
    most = max(runs, key=lambda run: len(runs[run]), default="")
    lines = readings.rows(metrics)
    lines += [f"\n{_names(names)}: {run}" for run, names in runs.items() if run != most]
    left_out = report.get("missing", {}).items()
    lines += [f"\n`{name}` is left out: {reason}" for name, reason in left_out]
    return "\n".join([*lines, "", "All others: " * (len(runs) > 1) + most])


def _of_budgets(report: Report) -> dict[str, Mapping[str, Any]]:
    """Returns the metrics that have no table of their own."""
    metrics = report["metrics"]
    return {name: each for name, each in metrics.items() if name not in FIRST_TOKENS}


def first_token_table(report: Report) -> str:
    """Returns what each door adds to the time to the first token, in milliseconds."""
    metrics = report["metrics"]
    times = [f"{what}, {each}" for each in PERCENTILES for what in ("the server itself", "added")]
    lines = [
        f"| door | load | requests/s | {' | '.join(times)} | CPU us a request |",
        "|---" * (len(times) + 4) + "|",
    ]
    runs: dict[str, None] = {}
    for door, load in itertools.product(DOORS, LOADS):
        found = [metrics.get(first_token(door, load, each)) for each in PERCENTILES]
        if not all(found):
            continue
        cells = [DOORS[door], load, readings.plain(found[0]["parts"]["requests/s"])]
        for each in found:
            for name in ("reference", "value"):
                number = (each[name], each[f"{name}_spread"])
                cells.append(readings.number(*(1e-3 * (us or 0.0) for us in number)))
            runs[_run_of(each, report)] = None
        costs = {
            what.removeprefix(readings.CPU_OF): us
            for what, us in found[0]["parts"].items()
            if what.startswith(readings.CPU_OF)
        }
        cells.append(", ".join(f"{name} {readings.plain(us)}" for name, us in costs.items()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *runs]) if runs else ""


def _run_of(metric: Mapping[str, Any], report: Report) -> str:
    """Returns where a metric was made: by the report's run, or by one that was merged into it."""
    if "run" in metric:
        return _made_by(metric["run"])
    if (metric["suite"], metric["commit"]) == (report["suite"], report["commit"]):
        return _made_by(report)
    return f"suite {metric['suite']}, commit `{metric['commit']}`."


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def part_table(report: Report) -> str:
    """Returns what was measured beside the metrics."""
    lines = ["| metric | beside it |", "|---|---|"]
    for name, each in _of_budgets(report).items():
        parts = [f"{what}: {readings.plain(value)}" for what, value in each["parts"].items()]
        parts += [each["note"]] if each["note"] else []
        lines += [f"| `{name}` | {'; '.join(parts)} |"] if parts else []
    return "\n".join(lines)


def growth_figure(report: Report) -> Figure:
    """Returns how costs grow: decision times over candidates, the shared picture over its size."""
    lines = [
        (name, line, LINES.get(name, GREEN)) for name, line in _series(report, "decision_").items()
    ]
    panels = [("Time of one decision, us", "candidates", "", lines)]
    for name, line in _series(report, "state_").items():
        if len(line) > 1:
            title, size, color = STATE_PANELS[name]
            panels.append((title, size, "", [(name, line, color)]))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
        for axes, (title, size, cost, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            axes.set_title(title)
            axes.set_xlabel(size)
            axes.set_ylabel(cost)
            for label, curve, color in curves:
                sizes, costs = zip(*sorted(curve), strict=True)
                is_fitted = curves is not lines and len(set(sizes)) >= LEAST_SIZES
                style = "none" if is_fitted else "-"
                axes.plot(sizes, costs, color=color, ls=style, marker="o", ms=4, label=label)
                if is_fitted:
                    start, slope, _ = line_through(curve)
                    ends = np.array([0.0, sizes[-1]])
                    axes.plot(ends, start + slope * ends, "--", color=color, lw=1)
            if curves is lines:
                axes.set_xscale("log")
                axes.set_yscale("log")
                # Whole decades, and no more than them named: fewer ticks would have labels else.
                low, high = (math.log10(each) for each in axes.get_ylim())
                axes.set_ylim(10.0 ** math.floor(low), 10.0 ** math.ceil(high))
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.set_xlim(left=0)
                axes.set_ylim(bottom=0)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            if len(curves) > 1:
                axes.legend()
    return figure


def fleet_table(report: Report) -> str:
    """Returns what 1,000 devices cost by what was measured, at several rates per device.

    A request costs a router what it cost in front of four devices, and what the decision costs
    more among the candidates of a thousand.
    """
    metrics = report["metrics"]
    needed = ("generate_dqn", "decision_dqn_12", "decision_dqn_3072", "state_256x1024")
    if any(name not in metrics for name in needed):
        return ""
    more_us = metrics["decision_dqn_3072"]["value"] - metrics["decision_dqn_12"]["value"]
    request_us = 1e6 / metrics["generate_dqn"]["value"] + more_us
    state = metrics["state_256x1024"]
    state_mb_per_s = state["parts"]["bytes per state"] * STATES_PER_S / 1e6
    columns = (
        "requests/s of a device", "requests/s", "CPU us a request", "router cores",
        "of them for the picture", "states, MB/s to all routers",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for each_rps in DEVICE_RPS:
        rate_rps = each_rps * DEVICES
        serving = rate_rps * request_us / 1e6
        routers = math.ceil(serving / ROUTER_SHARE)
        picture = routers * state["value"]
        cells = (each_rps, rate_rps, request_us, serving + picture, picture)
        numbers = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in cells]
        lines.append(f"| {' | '.join(numbers)} | {routers * state_mb_per_s:,.0f} |")
    return "\n".join(lines)


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Returns the least-squares line through sizes and costs.

    Returns:
        Cost at size 0, cost per unit of size, and the largest distance of a point from the line as
        a share of that point's cost.
    """
    sizes, costs = np.array(sorted(points)).T
    slope, start = np.polyfit(sizes, costs, 1)
    off = np.max(np.abs(start + slope * sizes - costs) / costs)
    return float(start), float(slope), float(off)


def fit_table(report: Report) -> str:
    """Returns the lines through what the exchange of states cost at several sizes.

    Empty where the report holds fewer sizes than a line can be judged by.
    """
    series, rows = _series(report, "state_64x64"), []
    for name, (what, one, many) in FITTED.items():
        points = series.get(name, [])
        if len({size for size, _ in points}) < LEAST_SIZES:
            continue
        start, slope, off = line_through(points)
        low, high = min(points)[0], max(points)[0]
        cells = [
            what,
            f"{readings.plain(start)} + {readings.plain(slope)} per {one}",
            f"{low:,.0f} to {high:,.0f} {many}, {len(points)} points",
            f"{100 * off:.0f} %",
            _beyond(report, name, start, slope),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    if not rows:
        return ""
    head = "| cost | line | measured at | farthest point off | beyond: line, measured |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def _beyond(report: Report, name: str, start: float, slope: float) -> str:
    """What the line says of a larger size that was measured too, and what was measured."""
    metric, size, field = BEYOND.get(name, ("", 0, ""))
    found = report["metrics"].get(metric)
    if found is None:
        return "-"
    measured = found["value"] if field == "value" else found["parts"]["bytes per state"]
    return f"{size:,}: {readings.plain(start + slope * size)}, {readings.plain(measured)}"


def live_table(report: Report) -> str:
    """Returns the live proof's table and where it was made."""
    return f"{live_report.show(report)}\n\n{_made_by(report)}"


def outside_table(report: Report) -> str:
    """Returns the tables of others at the same place."""
    return f"{outside.show(report)}\n\n{_made_by(report)}"


def fill(text: str, tables: Mapping[str, str]) -> str:
    """Puts each table between its markers, `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

    Raises:
        ValueError: The page lacks a table's markers.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no {begin} ... {end} in the page")
        text = pattern.sub(lambda _, new=f"{begin}\n{table}\n{end}": new, text)  # type: ignore[misc]
    return text


def tables(folder: pathlib.Path) -> dict[str, str]:
    """Returns the tables that the reports of a folder give."""
    report = _read(folder / "bench.json")
    makers: list[tuple[str, Report | None, Callable[[Report], str]]] = [
        ("bench", report, budget_table),
        ("parts", report, part_table),
        ("fit", report, fit_table),
        ("first-token", report, first_token_table),
        ("fleet", report, fleet_table),
        ("live", _read(folder / "live-proof.json"), live_table),
        ("live-slower", _read(folder / "live-proof-slower.json"), live_table),
        ("outside", _read(folder / "outside.json"), outside_table),
    ]
    return {name: make(each) for name, each, make in makers if each is not None}


def door_tables(folder: pathlib.Path) -> dict[str, str]:
    """Returns the tables of docs/doors.md that the reports of a folder give."""
    report = _read(folder / "aiperf.json")
    return {} if report is None else {"aiperf": f"{aiperf.show(report)}\n\n{_made_by(report)}"}


PAGES: Mapping[str, Callable[[pathlib.Path], dict[str, str]]] = {
    "performance.md": tables,
    "doors.md": door_tables,
}


def merge(path: pathlib.Path, newer: pathlib.Path) -> None:
    """Takes the metrics of a newer report over into one; each keeps what its run was."""
    report, other = json.loads(path.read_text()), json.loads(newer.read_text())
    run = {key: other[key] for key in ("command", "started", "commit", "machine")}
    metrics = report["metrics"]
    metrics |= {name: {"run": run} | each for name, each in other["metrics"].items()}
    report["metrics"] = {name: metrics[name] for name in BUDGETS if name in metrics}
    missing = report.get("missing", {}) | other.get("missing", {})
    report["missing"] = {name: why for name, why in missing.items() if name not in metrics}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Writes pages and plots; returns the exit code.

    A report given as argument is first merged into `bench.json`.
    """
    root = checkout()
    if root is None:
        print("the pages are in the checkout only", file=sys.stderr)
        return 1
    results = root / "docs" / "results"
    for newer in sys.argv[1:]:
        merge(results / "bench.json", pathlib.Path(newer))
    for name, tables_of in PAGES.items():
        page = root / "docs" / name
        text = page.read_text(encoding="utf-8")
        page.write_text(fill(text, tables_of(results)), encoding="utf-8")
    report = _read(results / "bench.json")
    if report is not None:
        figure = growth_figure(report)
        with mpl.rc_context(STYLE):
            figure.savefig(root / "docs" / "images" / GROWTH_PNG, dpi=130)
    return 0


def _read(path: pathlib.Path) -> Report | None:
    if not path.is_file():
        return None
    report: Report = json.loads(path.read_text(encoding="utf-8"))
    return report


def _series(report: Report, prefix: str) -> dict[str, list[tuple[float, float]]]:
    """Lines of the metrics whose names begin so."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, each in report["metrics"].items():
        if name.startswith(prefix):
            lines |= each["series"]
    return lines


def _made_by(report: Report) -> str:
    machine = report["machine"]
    command = f"`{report['command']}`, " if "command" in report else ""
    at = report.get("started") or report["at"]
    return (
        f"{command}commit `{report['commit']}`, {at}, {machine['cores']} cores of "
        f"{machine['cpu']}, Python {machine['python']}."
    )


if __name__ == "__main__":
    sys.exit(main())
