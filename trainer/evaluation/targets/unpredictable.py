"""Targets on unpredictable workloads and on GPUs: the paper's own claims among them."""

from __future__ import annotations

from trainer.evaluation.gpus import SERVES_NOTHING
from trainer.evaluation.plan import PAPER_GPU_RATIO, PAPER_WINDOW_RATIOS
from trainer.evaluation.rows import Row
from trainer.evaluation.targets.view import NO_LEARNED, Judge, View, judged, missing, span
from trainer.evaluation.windows import level_name

WINDOW_LOAD_RATIOS = {0.96: 2.0, 0.98: 1.5}


def window_loads(level: float) -> Judge:
    """Judges the highest load whose windows stay above a level; names what the bound allows."""

    def judge(view: View) -> Row:
        factor = WINDOW_LOAD_RATIOS[level]
        name = f"unpredictable workloads, windows above {level}"
        target = (
            f"highest load with 90 % of windows above: at least {factor:g}x of {view.large}'s and "
            "above every baseline's, on each workload"
        )
        rows = [row for row in view.rows("window_loads") if row["level"] == level]
        if not rows:
            return missing(name, target, NO_LEARNED)
        bounds = {
            row["workload"]: row
            for row in view.report["window_bound_loads"]
            if row["level"] == level
        }
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
                f"baseline {best['policy']} {best['load']:.2f}; "
                f"{_possible(bounds.get(row['workload']), max(factor * large, best['load']))})"
            )
        known = [ratio for ratio in ratios if ratio is not None]
        return judged(name, target, min(known) if known else None, met, "; ".join(notes))

    return judge


def window_curve(level: float) -> Judge:
    """Judges the share of windows above a level, load by load."""

    def judge(view: View) -> Row:
        factor = PAPER_WINDOW_RATIOS[level]
        name = f"windows above {level} against {view.large}"
        target = f"{factor:g}x as many (paper) over a range of loads, on each workload"
        rows = view.rows("windows")
        if not rows:
            return missing(name, target, NO_LEARNED)
        column = level_name(level)
        static = {(r["workload"], r["load"]): r for r in view.rows("windows", view.large)}
        reached: dict[str, list[float]] = {row["workload"]: [] for row in rows}
        for row in rows:
            other = static[row["workload"], row["load"]][column]
            # A ratio against nothing is infinite; it counts where the share itself is not small.
            if row[column] >= max(factor * other, 0.1):
                reached[row["workload"]].append(row["load"])
        notes = [f"{workload}: {span(loads)}" for workload, loads in reached.items()]
        least = min(len(loads) for loads in reached.values())
        return judged(name, target, least, least > 0, "; ".join(notes))

    return judge


def _possible(bound: Row | None, wanted: float) -> str:
    """Returns the highest load at which the bound itself keeps 90 % of windows, and what follows.

    Args:
        bound: row of the bound, over the windows of the first seeds; None if there is none.
        wanted: the load that the goal asks for.
    """
    if bound is None:
        return "bound not known"
    more = "or more" if bound["open_end"] else ""
    can = bound["open_end"] or (bound["load"] >= wanted and bound["load"] > 0.0)
    verdict = "" if can else ", the goal is beyond it"
    return f"bound {bound['load']:.2f} {more}".rstrip() + verdict


def gpus(view: View) -> Row:
    """Judges performance per GPU against a static deployment of 8."""
    name = "performance per GPU"
    target = f"{PAPER_GPU_RATIO:g}x of {view.large} on 8 GPUs (paper) over a range of loads"
    rows = view.rows("per_gpu")
    if not rows:
        return missing(name, target, NO_LEARNED)
    reached = [row["load"] for row in rows if _reaches(row)]
    alone = [row["load"] for row in rows if row["static_serves_nothing"]]
    highest = max(rows, key=lambda row: row["load"])
    needed = highest["static_large_devices"]
    shown = f"more than {highest['most_devices_tried']}" if needed is None else f"{needed:.1f}"
    detail = (
        f"{span(reached)}; at load {highest['load']:g} {view.large} needs {shown} GPUs to equal "
        f"{highest['devices']}"
        + (f"; {view.large} serves < {SERVES_NOTHING:.1%} at {span(alone)}" if alone else "")
    )
    return judged(name, target, len(reached), len(reached) > 0, detail)


def _reaches(row: Row) -> bool:
    """Returns whether a row reaches the paper's ratio; where static serves nothing, at least."""
    if row["per_gpu_ratio"] is not None:
        return bool(row["per_gpu_ratio"] >= PAPER_GPU_RATIO)
    least = (row["performance"] / row["devices"]) / (SERVES_NOTHING / row["paper_devices"])
    return bool(least >= PAPER_GPU_RATIO)
