"""Targets on the load sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.plan import PAPER_LOAD_RATIO
from trainer.evaluation.rows import Row
from trainer.evaluation.targets.view import (
    NO_BOUND,
    NO_LEARNED,
    View,
    interval_text,
    judged,
    missing,
)
from trainer.simulation.setting import HOLDS

SHARE_EVERYWHERE, SHARE_ON_AVERAGE = 0.96, 0.98


def bound_kept(report: Mapping[str, Any]) -> Row:
    """Nobody may earn more than the bound says anybody can."""
    name, target = "no policy above the bound", "0 runs above the bound"
    if not any(row["bound"] is not None for row in report["sweep"]):
        return missing(name, target, NO_BOUND)
    count = len(report["violations"])
    if count and report["iterations_vary"]:
        why = "iterations vary about their mean, and the bound reckons with that"
        return judged(name, target, count, None, f"not judged: {why}")
    return judged(name, target, count, count == 0, "sweep and shifts, every run of every policy")


def availability(view: View) -> Row:
    """Judges the lowest availability of the sweep."""
    name, target = "availability in the sweep", f"at least {HOLDS} at every rate"
    rows = view.rows("sweep")
    if not rows:
        return missing(name, target, NO_LEARNED)
    worst = min(rows, key=lambda row: row["availability"])
    value = worst["availability"]
    where = f"lowest at load {worst['load']:g}; loads {rows[0]['load']:g} to {rows[-1]['load']:g}"
    return judged(name, target, value, value >= HOLDS, where)


def load_ratio(view: View) -> Row:
    """Judges the highest load up to which every rate is held."""
    name, target = "load held", f"above {PAPER_LOAD_RATIO:g}x of what {view.large} holds (paper)"
    rows = view.rows("load_ratio")
    if not rows:
        return missing(name, target, NO_LEARNED)
    value = rows[0]["load"]
    swept = min(value, rows[0]["held_in_sweep"])
    detail = f"every rate of the sweep up to {rows[0]['held_in_sweep']:g}x is held"
    return judged(name, target, value, swept > PAPER_LOAD_RATIO, detail)


def share_everywhere(view: View) -> Row:
    """Judges the lowest share of the bound."""
    name, target = "share of the bound", f"at least {SHARE_EVERYWHERE} at every rate of the sweep"
    rows = view.rows("sweep")
    if not rows or rows[0]["bound_share"] is None:
        return missing(name, target, NO_BOUND if rows else NO_LEARNED)
    worst = min(rows, key=lambda row: row["bound_share"])
    value = worst["bound_share"]
    return judged(
        name, target, value, value >= SHARE_EVERYWHERE, f"lowest at load {worst['load']:g}"
    )


def share_on_average(view: View) -> Row:
    """Judges the mean share of the bound."""
    name, target = "share of the bound, mean", f"at least {SHARE_ON_AVERAGE} over the sweep"
    rows = view.rows("sweep")
    if not rows or rows[0]["bound_share"] is None:
        return missing(name, target, NO_BOUND if rows else NO_LEARNED)
    value = sum(row["bound_share"] for row in rows) / len(rows)
    return judged(name, target, value, value >= SHARE_ON_AVERAGE, f"mean over {len(rows)} rates")


def best_baseline(view: View) -> Row:
    """Judges the gap to the best hand-made policy at each rate, in pairs."""
    name = "beside the best baseline"
    target = "never below the best static or tuned baseline beyond the interval"
    rows = view.rows("beside_baselines")
    if not rows:
        return missing(name, target, NO_LEARNED)
    worst = min(rows, key=lambda row: row["gap"])
    detail = (
        f"largest gap at load {worst['load']:g}, {worst['best_baseline']}: "
        f"{interval_text(worst, 'gap', '+.4f')}"
    )
    if not all(row["gap_ci95"] for row in rows):
        return judged(name, target, worst["gap"], None, f"not judged: {detail}")
    beaten = [row for row in rows if row["gap_ci95"][1] < 0.0]
    detail += f"; beaten at {len(beaten)} of {len(rows)} rates"
    return judged(name, target, worst["gap"], not beaten, detail)
