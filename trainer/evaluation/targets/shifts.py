"""Targets on shifts without retraining, regret among them."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluation.policies import REGRET_BASELINE, zeroed_name
from trainer.evaluation.regret import SHIFT_AVAILABILITY, coping_points
from trainer.evaluation.rows import Row
from trainer.evaluation.shifts import NOMINAL
from trainer.evaluation.targets.view import (
    NO_BOUND,
    NO_LEARNED,
    Judge,
    View,
    interval_text,
    judged,
    missing,
)

REGRET_REMOVED = 0.2
COPES = ", where always-small copes"
SHIFT_LOSS, STALE_LOSS = 0.03, 0.02


def regret(family: str, *, where_small_copes: bool = False) -> Judge:
    """Judges the share of price's regret that is removed over a family of shifts.

    Beyond what always-small can carry everybody's regret is enormous and drowns the rest; so there
    is a second judgement over the points at which always-small copes.
    """
    part = "regret_where_small_copes" if where_small_copes else "regret"

    def judge(view: View) -> Row:
        name = f"regret removed, {family}" + (COPES if where_small_copes else "")
        target = (
            f"at least {REGRET_REMOVED:.0%} of {REGRET_BASELINE}'s, and less than that by the same "
            "snapshot with its network zeroed"
        )
        rows = [row for row in view.rows(part) if row["family"] == family]
        zeroed = view.rows(part, zeroed_name(view.learned))
        twins = [row for row in zeroed if row["family"] == family]
        if not view.learned:
            return missing(name, target, NO_LEARNED)
        if not rows:
            return missing(name, target, "no such point" if view.rows("regret") else NO_BOUND)
        if not twins:
            return missing(name, target, "it is no dqn, so there is no zeroed twin")
        value, twin = rows[0]["removed"], twins[0]["removed"]
        if value is None or twin is None:
            return missing(name, target, f"{REGRET_BASELINE} has no regret to remove")
        met = value >= REGRET_REMOVED > twin
        ends = interval_text(rows[0], "removed")
        detail = f"{ends}; zeroed {twin:.3f}; over {rows[0]['points']} points"
        return judged(name, target, value, met, detail)

    return judge


def shift_availability(view: View) -> Row:
    """Judges the lowest availability over all shifts and loads."""
    name = "availability under shifts"
    target = f"at least {SHIFT_AVAILABILITY} in every shift at every load"
    return _lowest_availability(view, name, target, view.rows("shifts"))


def feasible_availability(view: View) -> Row:
    """Bursts may exceed what any policy can carry; where always-small copes, others must."""
    name = f"availability under shifts{COPES}"
    target = f"at least {SHIFT_AVAILABILITY} wherever always-small has that"
    points = coping_points(view.report["shifts"], view.small)
    rows = [row for row in view.rows("shifts") if (row["shift"], row["load"], True) in points]
    return _lowest_availability(view, name, target, rows)


def _lowest_availability(view: View, name: str, target: str, rows: Sequence[Row]) -> Row:
    if not rows:
        return missing(name, target, "no such point" if view.learned else NO_LEARNED)
    worst = min(rows, key=lambda row: row["availability"])
    value = worst["availability"]
    below = [row for row in rows if row["availability"] < SHIFT_AVAILABILITY]
    names = ", ".join(dict.fromkeys(row["shift"] for row in below)) or "none"
    detail = (
        f"lowest in {worst['shift']!r} at load {worst['load']:.2f}; below at {len(below)} of "
        f"{len(rows)} points: {names}"
    )
    return judged(name, target, value, value >= SHIFT_AVAILABILITY, detail)


def shift_performance(view: View) -> Row:
    """Judges by retrained policies if they are known, else by the bound."""
    name = "performance under shifts"
    target = f"within {SHIFT_LOSS:.0%} of a policy retrained for the shift"
    study = view.report["retrained"]
    if study["rows"] and view.learned:
        return _beside_retrained(view, name, target, study)
    rows = [row for row in view.rows("shifts") if row["bound_share"] is not None]
    if not rows:
        return missing(name, target, NO_BOUND if view.learned else NO_LEARNED)
    worst = min(rows, key=lambda row: row["bound_share"])
    value = worst["bound_share"]
    near = [row for row in rows if row["bound_share"] >= 1.0 - SHIFT_LOSS]
    detail = (
        f"lowest share of the bound, {worst['shift']!r} at load {worst['load']:.2f}; no retrained "
        f"policy exceeds the bound, and {len(near)} of {len(rows)} points are within "
        f"{SHIFT_LOSS:.0%} of it"
    )
    if len(near) == len(rows):
        return judged(name, target, value, True, detail)
    return judged(name, target, value, None, f"not judged, {study['reason']}: {detail}")


def _beside_retrained(view: View, name: str, target: str, study: Row) -> Row:
    """Judges by the retrained policies, met on the same requests."""
    rows = [row for row in study["rows"] if row["safety_net"] and row["ratio"] is not None]
    missing = {row["shift"] for row in view.rows("shifts")} - {row["shift"] for row in rows}
    worst = min(rows, key=lambda row: row["ratio"])
    near = [row for row in rows if row["ratio"] >= 1.0 - SHIFT_LOSS]
    kept = sum(row["kept"] == "retrained" for row in study["training"])
    detail = (
        f"lowest in {worst['shift']!r} at load {worst['load']:.2f}: "
        f"{interval_text(worst, 'ratio')}; {len(near)} of {len(rows)} points are within "
        f"{SHIFT_LOSS:.0%}; training on paid on validation in {kept} of "
        f"{len(study['training'])} shifts"
    )
    met: bool | None = len(near) == len(rows)
    if met and missing:
        met, detail = None, f"not judged, not retrained for {', '.join(sorted(missing))}: {detail}"
    return judged(name, target, worst["ratio"], met, detail)


def stale(view: View) -> Row:
    """Judges several routers with stale views against one, on the same requests."""
    name = "two and four routers with stale views"
    target = f"within {STALE_LOSS:.0%} of one router"
    rows = view.rows("shifts")
    one = {row["load"]: row for row in rows if row["shift"] == NOMINAL}
    many = [row for row in rows if row["family"] == "stale"]
    if not many or not one:
        return missing(name, target, NO_LEARNED)
    worst = min(many, key=lambda row: row["performance"] / one[row["load"]]["performance"])
    value = worst["performance"] / one[worst["load"]]["performance"]
    detail = f"lowest with {worst['shift']!r} at load {worst['load']:.2f}"
    return judged(name, target, value, value >= 1.0 - STALE_LOSS, detail)
