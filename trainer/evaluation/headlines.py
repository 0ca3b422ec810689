"""Headlines: each target beside what was found, worked out from the report's own rows.

A target that this run cannot judge (no learned policy, no bound, a part not run) has `met` None and
says why; it is never counted as met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.evaluation.plan import PAPER_GPU_RATIO, PAPER_LOAD_RATIO, PAPER_WINDOW_RATIOS
from trainer.evaluation.policies import REGRET_BASELINE, zeroed_name
from trainer.evaluation.rows import Row
from trainer.evaluation.setting import HOLDS
from trainer.evaluation.windows import level_name

SHARE_EVERYWHERE, SHARE_ON_AVERAGE = 0.96, 0.98
REGRET_REMOVED = 0.2
WINDOW_LOAD_RATIOS = {0.96: 2.0, 0.98: 1.5}
SHIFT_AVAILABILITY, SHIFT_LOSS, STALE_LOSS = 0.98, 0.03, 0.02


def headlines(report: Mapping[str, Any], learned: str, large: str, small: str) -> list[Row]:
    """Returns one row per target: name, target, value, met (True, False, None), detail.

    Args:
        report: the results so far.
        learned: name of the learned policy; empty if there is none.
        large: name of static-large.
        small: name of always-small.
    """
    view = _View(report, learned, large, small)
    judges: tuple[Judge, ...] = (
        _availability,
        _load_ratio,
        _share_everywhere,
        _share_on_average,
        _best_baseline,
        *(_regret(family) for family in ("bursty", "stale", "loss")),
        *(_window_loads(level) for level in WINDOW_LOAD_RATIOS),
        *(_window_curve(level) for level in PAPER_WINDOW_RATIOS),
        _gpus,
        _shift_availability,
        _feasible_availability,
        _shift_performance,
        _stale,
    )
    return [_bound_kept(report), *(judge(view) for judge in judges)]


class _View:
    """The learned policy's rows, safety net on, and those beside them."""

    def __init__(self, report: Mapping[str, Any], learned: str, large: str, small: str) -> None:
        self.report, self.learned, self.large, self.small = report, learned, large, small

    def rows(self, part: str, policy: str = "", *, net: bool = True) -> list[Row]:
        wanted = policy or self.learned
        return [
            row for row in self.report[part] if row["policy"] == wanted and row["safety_net"] is net
        ]

    def baselines(self, part: str) -> list[Row]:
        own = self.report["not_baselines"]
        return [r for r in self.report[part] if r["policy"] not in own and r["safety_net"]]


Judge = Callable[[_View], Row]


def _row(name: str, target: str, value: Any, met: bool | None, detail: str) -> Row:
    value = round(value, 5) if isinstance(value, float) else value
    return {"name": name, "target": target, "value": value, "met": met, "detail": detail}


def _missing(name: str, target: str, why: str) -> Row:
    return _row(name, target, None, None, f"not judged: {why}")


NO_LEARNED = "no learned policy was evaluated"
NO_BOUND = "no bound is known"


def _bound_kept(report: Mapping[str, Any]) -> Row:
    name, target = "no policy above the bound", "0 runs above the bound"
    if not any(row["bound"] is not None for row in report["sweep"]):
        return _missing(name, target, NO_BOUND)
    count = len(report["violations"])
    return _row(name, target, count, count == 0, "sweep and shifts, every run of every policy")


def _availability(view: _View) -> Row:
    name, target = "availability in the sweep", f"at least {HOLDS} at every rate"
    rows = view.rows("sweep")
    if not rows:
        return _missing(name, target, NO_LEARNED)
    worst = min(rows, key=lambda row: row["availability"])
    value = worst["availability"]
    where = f"lowest at load {worst['load']:g}; loads {rows[0]['load']:g} to {rows[-1]['load']:g}"
    return _row(name, target, value, value >= HOLDS, where)


def _load_ratio(view: _View) -> Row:
    name, target = "load held", f"above {PAPER_LOAD_RATIO:g}x of what {view.large} holds (paper)"
    rows = view.rows("load_ratio")
    if not rows:
        return _missing(name, target, NO_LEARNED)
    value = rows[0]["load"]
    swept = min(value, rows[0]["held_in_sweep"])
    detail = f"every rate of the sweep up to {rows[0]['held_in_sweep']:g}x is held"
    return _row(name, target, value, swept > PAPER_LOAD_RATIO, detail)


def _share_everywhere(view: _View) -> Row:
    name, target = "share of the bound", f"at least {SHARE_EVERYWHERE} at every rate of the sweep"
    rows = view.rows("sweep")
    if not rows or rows[0]["bound_share"] is None:
        return _missing(name, target, NO_BOUND if rows else NO_LEARNED)
    worst = min(rows, key=lambda row: row["bound_share"])
    value = worst["bound_share"]
    return _row(name, target, value, value >= SHARE_EVERYWHERE, f"lowest at load {worst['load']:g}")


def _share_on_average(view: _View) -> Row:
    name, target = "share of the bound, mean", f"at least {SHARE_ON_AVERAGE} over the sweep"
    rows = view.rows("sweep")
    if not rows or rows[0]["bound_share"] is None:
        return _missing(name, target, NO_BOUND if rows else NO_LEARNED)
    value = sum(row["bound_share"] for row in rows) / len(rows)
    return _row(name, target, value, value >= SHARE_ON_AVERAGE, f"mean over {len(rows)} rates")


def _best_baseline(view: _View) -> Row:
    name = "beside the best baseline"
    target = "never below the best static or tuned baseline beyond the interval"
    rows = view.rows("beside_baselines")
    if not rows:
        return _missing(name, target, NO_LEARNED)
    worst = min(rows, key=lambda row: row["gap"])
    beaten = [row for row in rows if row["gap_ci95"][1] < 0.0]
    low, high = worst["gap_ci95"]
    detail = (
        f"largest gap at load {worst['load']:g}, {worst['best_baseline']}: interval {low:+.4f} to "
        f"{high:+.4f}; beaten at {len(beaten)} of {len(rows)} rates"
    )
    return _row(name, target, worst["gap"], not beaten, detail)


def _regret(family: str) -> Judge:
    def judge(view: _View) -> Row:
        name = f"regret removed, {family}"
        target = (
            f"at least {REGRET_REMOVED:.0%} of {REGRET_BASELINE}'s, and less than that by the same "
            "snapshot with its network zeroed"
        )
        rows = [row for row in view.rows("regret") if row["family"] == family]
        zeroed = view.rows("regret", zeroed_name(view.learned))
        twins = [row for row in zeroed if row["family"] == family]
        if not rows or not twins:
            why = "it is no dqn, so there is no zeroed twin" if rows else NO_BOUND
            return _missing(name, target, why if view.learned else NO_LEARNED)
        value, twin = rows[0]["removed"], twins[0]["removed"]
        met = value >= REGRET_REMOVED > twin
        low, high = rows[0]["removed_ci95"]
        return _row(
            name, target, value, met, f"interval {low:.3f} to {high:.3f}; zeroed {twin:.3f}"
        )

    return judge


def _window_loads(level: float) -> Judge:
    def judge(view: _View) -> Row:
        factor = WINDOW_LOAD_RATIOS[level]
        name = f"unpredictable workloads, windows above {level}"
        target = (
            f"highest load with 90 % of windows above: at least {factor:g}x of {view.large}'s and "
            "above every baseline's, on each workload"
        )
        rows = [row for row in view.rows("window_loads") if row["level"] == level]
        if not rows:
            return _missing(name, target, NO_LEARNED)
        others = [row for row in view.baselines("window_loads") if row["level"] == level]
        notes, ratios, met = [], [], True
        for row in rows:
            rivals = [other for other in others if other["workload"] == row["workload"]]
            large = next(other["load"] for other in rivals if other["policy"] == view.large)
            best = max(rivals, key=lambda other: other["load"])
            ratio = row["load"] / large if large > 0.0 else None
            met &= row["load"] > best["load"] and (
                ratio >= factor if ratio is not None else row["load"] > 0.0
            )
            ratios.append(ratio)
            shown = "no load" if ratio is None else f"{ratio:.2f}x"
            notes.append(
                f"{row['workload']}: {row['load']:.2f} ({view.large} {large:.2f}: {shown}; best "
                f"baseline {best['policy']} {best['load']:.2f})"
            )
        known = [ratio for ratio in ratios if ratio is not None]
        return _row(name, target, min(known) if known else None, met, "; ".join(notes))

    return judge


def _window_curve(level: float) -> Judge:
    def judge(view: _View) -> Row:
        factor = PAPER_WINDOW_RATIOS[level]
        name = f"windows above {level} against {view.large}"
        target = f"{factor:g}x as many (paper) over a range of loads, on each workload"
        rows = view.rows("windows")
        if not rows:
            return _missing(name, target, NO_LEARNED)
        column = level_name(level)
        static = {(r["workload"], r["load"]): r for r in view.rows("windows", view.large)}
        reached: dict[str, list[float]] = {row["workload"]: [] for row in rows}
        for row in rows:
            other = static[row["workload"], row["load"]][column]
            # A ratio against nothing is infinite; it counts where the share itself is not small.
            if row[column] >= max(factor * other, 0.1):
                reached[row["workload"]].append(row["load"])
        notes = [f"{workload}: {_span(loads)}" for workload, loads in reached.items()]
        least = min(len(loads) for loads in reached.values())
        return _row(name, target, least, least > 0, "; ".join(notes))

    return judge


def _span(loads: Sequence[float]) -> str:
    return f"loads {min(loads):g} to {max(loads):g}" if loads else "at no load"


def _gpus(view: _View) -> Row:
    name = "performance per GPU"
    target = f"{PAPER_GPU_RATIO:g}x of {view.large} on 8 GPUs (paper) over a range of loads"
    rows = view.rows("per_gpu")
    if not rows:
        return _missing(name, target, NO_LEARNED)
    reached = [row["load"] for row in rows if row["per_gpu_ratio"] >= PAPER_GPU_RATIO]
    highest = max(rows, key=lambda row: row["load"])
    needed = highest["static_large_devices"]
    shown = f"more than {highest['most_devices_tried']}" if needed is None else f"{needed:.1f}"
    detail = (
        f"{_span(reached)}; at load {highest['load']:g} {view.large} needs {shown} GPUs to equal "
        f"{highest['devices']}"
    )
    return _row(name, target, len(reached), len(reached) > 0, detail)


def _shift_availability(view: _View) -> Row:
    name = "availability under shifts"
    target = f"at least {SHIFT_AVAILABILITY} in every shift at every load"
    return _lowest_availability(view, name, target, view.rows("shifts"))


def _feasible_availability(view: _View) -> Row:
    """Bursts may exceed what any policy can carry; where always-small copes, others must."""
    name = "availability under shifts, where always-small copes"
    target = f"at least {SHIFT_AVAILABILITY} wherever always-small has that"
    small = {(row["shift"], row["load"]): row for row in view.rows("shifts", view.small)}
    rows = [
        row
        for row in view.rows("shifts")
        if small[row["shift"], row["load"]]["availability"] >= SHIFT_AVAILABILITY
    ]
    return _lowest_availability(view, name, target, rows)


def _lowest_availability(view: _View, name: str, target: str, rows: Sequence[Row]) -> Row:
    if not rows:
        return _missing(name, target, "no such point" if view.learned else NO_LEARNED)
    worst = min(rows, key=lambda row: row["availability"])
    value = worst["availability"]
    below = [row for row in rows if row["availability"] < SHIFT_AVAILABILITY]
    names = ", ".join(dict.fromkeys(row["shift"] for row in below)) or "none"
    detail = (
        f"lowest in {worst['shift']!r} at load {worst['load']:.2f}; below at {len(below)} of "
        f"{len(rows)} points: {names}"
    )
    return _row(name, target, value, value >= SHIFT_AVAILABILITY, detail)


def _shift_performance(view: _View) -> Row:
    name = "performance under shifts"
    target = f"within {SHIFT_LOSS:.0%} of a policy retrained for the shift"
    study = view.report["retrained"]
    if study["rows"] and view.learned:
        return _beside_retrained(view, name, target, study)
    rows = [row for row in view.rows("shifts") if row["bound_share"] is not None]
    if not rows:
        return _missing(name, target, NO_BOUND if view.learned else NO_LEARNED)
    worst = min(rows, key=lambda row: row["bound_share"])
    value = worst["bound_share"]
    near = [row for row in rows if row["bound_share"] >= 1.0 - SHIFT_LOSS]
    detail = (
        f"lowest share of the bound, {worst['shift']!r} at load {worst['load']:.2f}; no retrained "
        f"policy exceeds the bound, and {len(near)} of {len(rows)} points are within "
        f"{SHIFT_LOSS:.0%} of it"
    )
    if len(near) == len(rows):
        return _row(name, target, value, True, detail)
    return _row(name, target, value, None, f"not judged, {study['reason']}: {detail}")


def _beside_retrained(view: _View, name: str, target: str, study: Row) -> Row:
    """Judges by the retrained policies, met on the same requests."""
    rows = [row for row in study["rows"] if row["safety_net"]]
    missing = {row["shift"] for row in view.rows("shifts")} - {row["shift"] for row in rows}
    worst = min(rows, key=lambda row: row["ratio"])
    low, high = worst["ratio_ci95"]
    near = [row for row in rows if row["ratio"] >= 1.0 - SHIFT_LOSS]
    kept = sum(row["kept"] == "retrained" for row in study["training"])
    detail = (
        f"lowest in {worst['shift']!r} at load {worst['load']:.2f}: interval {low:.3f} to "
        f"{high:.3f}; {len(near)} of {len(rows)} points are within {SHIFT_LOSS:.0%}; training on "
        f"paid on validation in {kept} of {len(study['training'])} shifts"
    )
    met: bool | None = len(near) == len(rows)
    if met and missing:
        met, detail = None, f"not judged, not retrained for {', '.join(sorted(missing))}: {detail}"
    return _row(name, target, worst["ratio"], met, detail)


def _stale(view: _View) -> Row:
    name = "two and four routers with stale views"
    target = f"within {STALE_LOSS:.0%} of one router"
    rows = view.rows("shifts")
    one = {row["load"]: row for row in rows if row["shift"] == "nominal"}
    many = [row for row in rows if row["family"] == "stale"]
    if not many or not one:
        return _missing(name, target, NO_LEARNED)
    worst = min(many, key=lambda row: row["performance"] / one[row["load"]]["performance"])
    value = worst["performance"] / one[worst["load"]]["performance"]
    detail = f"lowest with {worst['shift']!r} at load {worst['load']:.2f}"
    return _row(name, target, value, value >= 1.0 - STALE_LOSS, detail)
