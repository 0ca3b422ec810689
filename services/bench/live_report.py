"""What is made of the runs of a live proof: means, paired differences to price, a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from services.live.compare import known
from trainer.evaluation.statistics import interval

BESIDE = "price"
SCORES = ("availability", "performance")
COLUMNS = (
    "load, time", "policy", "availability", "performance", f"minus {BESIDE}", "p99 s", "refused",
    "cores: routers / Triton / monitor / Redis / generator", "machine",
)  # fmt: skip
PROCESSES = ("router-inference", "triton", "load-monitor", "redis", "load generator")
"""How the names of the processes begin whose cores are told."""


def compare(
    runs: Sequence[Mapping[str, Any]], policies: Sequence[str], load: float
) -> dict[str, Any]:
    """Returns a load's means per policy, and each policy's paired differences to price.

    A policy is below price where even the upper end of the paired 95 % interval is below zero; half
    its width stands beside the mean, None where there was one turn.
    """
    here = [run for run in runs if run["load"] == load]
    rows: dict[str, Any] = {}
    for policy in policies:
        own = sorted((run for run in here if run["policy"] == policy), key=lambda run: run["seed"])
        beside = sorted(
            (run for run in here if run["policy"] == BESIDE), key=lambda run: run["seed"]
        )
        row: dict[str, Any] = {
            score: statistics.fmean(run["total"][score] for run in own) for score in SCORES
        }
        # A run in which nobody was answered has none: it is slower than all others, not left out.
        each_ms = [run["total"]["p99_ms"] or math.inf for run in own]
        row["p99_ms"] = known(statistics.median(each_ms))
        row["refused"] = sum(run["total"]["refused"] for run in own)
        row["failed"] = sum(run["total"]["failed"] for run in own)
        row["mix"] = {
            tier: statistics.fmean(run["total"]["mix"].get(tier, 0.0) for run in own)
            for tier in sorted({tier for run in own for tier in run["total"]["mix"]})
        }
        row["cores"] = {
            group: statistics.fmean(
                sum(cores for name, cores in run["cores"].items() if name.startswith(group))
                for run in own
            )
            for group in PROCESSES
        }
        row["machine_busy"] = max(run["machine_busy"] for run in own)
        row["valid"] = all(run["valid"] for run in own)
        for score in SCORES:
            pairs = zip(own, beside, strict=True)
            difference = interval(a["total"][score] - b["total"][score] for a, b in pairs)
            # Of one difference nobody knows how far it scatters.
            half = difference.half if len(own) > 1 else None
            row[f"{score}_minus_{BESIDE}"] = [difference.mean, half]
            is_below = half is not None and difference.mean + half < 0.0
            row[f"{score}_below_{BESIDE}"] = is_below
        rows[policy] = row
    first = here[0]
    return {key: first[key] for key in ("load", "rate_rps", "time_scale", "run_s")} | {
        "policies": rows
    }


def seconds_text(value_ms: float | None) -> str:
    """Returns milliseconds as seconds; a dash for none."""
    return "-" if value_ms is None else f"{value_ms / 1e3:.2f}"


def show(report: Mapping[str, Any]) -> str:
    """Returns the report as a Markdown table."""
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for load in report["loads"]:
        for policy, row in load["policies"].items():
            differences = [row[f"{score}_minus_{BESIDE}"] for score in SCORES]
            pairs = [
                f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")
                for mean, half in differences
            ]
            below = any(row[f"{score}_below_{BESIDE}"] for score in SCORES)
            beside = "-" if policy == BESIDE else " / ".join(pairs) + below * " **below**"
            cores = " / ".join(f"{value:.2f}" for value in row["cores"].values())
            lines.append(
                f"| {load['load']:g}x, x{load['time_scale']:g} | {policy} "
                f"| {row['availability']:.3f} | {row['performance']:.3f} | {beside} "
                f"| {seconds_text(row['p99_ms'])} | {row['refused']:,} | {cores} "
                f"| {row['machine_busy']:.0%}{'' if row['valid'] else ' (generator lagged)'} |"
            )
    return "\n".join(lines)
