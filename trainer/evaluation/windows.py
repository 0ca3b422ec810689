"""Unpredictable workloads: how many windows of time stay above a share of peak performance.

A ratio at one chosen load can be anything from one to infinity; so the share is a curve over load,
and policies are compared by the highest load whose windows stay above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.cases import CaseResult
from trainer.evaluation.rows import Row, grouped, measured, rounded

WINDOW_LEVELS = (0.96, 0.98)
"""Shares of peak performance a window is held against."""
WINDOW_SHARE = 0.9
"""A load counts as held if this share of its windows is above the level."""


def window_rows(results: Sequence[CaseResult]) -> list[Row]:
    """Returns a row per workload, load, policy and net: share of windows above each level."""
    rows = []
    for (label, load, policy, net), found in grouped(results).items():
        seeds = [outcome.window_W[np.isfinite(outcome.window_W)] for outcome, _ in found]
        row: Row = {
            "workload": label,
            "policy": policy,
            "safety_net": net,
            "rate_rps": rounded(found[0][1].case.rate_rps),
            "load": rounded(load),
            "windows": sum(len(window_W) for window_W in seeds),
            **measured("availability", (outcome.availability for outcome, _ in found)),
            **measured("performance", (outcome.performance for outcome, _ in found)),
        }
        for level in WINDOW_LEVELS:
            shares = [float((w > level).mean()) if len(w) else 0.0 for w in seeds]
            row |= measured(level_name(level), shares)
        rows.append(row)
    return rows


def window_bound_rows(results: Sequence[CaseResult]) -> list[Row]:
    """Returns per workload and load the share of windows that any policy could keep above.

    A window whose bound is below a level is above it under no policy. Over those seeds for which
    the bound was computed.
    """
    groups: dict[tuple[str, float], list[NDArray[np.float64]]] = {}
    for result in results:
        bound_W = result.bound_W[np.isfinite(result.bound_W)]
        if len(bound_W):
            groups.setdefault((result.case.label, result.case.load), []).append(bound_W)
    return [
        {
            "workload": label,
            "load": rounded(load),
            "windows": sum(len(bound_W) for bound_W in seeds),
            **{
                level_name(level): rounded(np.mean([(b > level).mean() for b in seeds]))
                for level in WINDOW_LEVELS
            },
        }
        for (label, load), seeds in groups.items()
    ]


def window_count_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns per workload the fewest windows with requests in them at any load, over all seeds."""
    fewest: dict[str, Row] = {}
    for row in rows:
        known = fewest.get(row["workload"])
        if known is None or row["windows"] < known["windows"]:
            fewest[row["workload"]] = row
    return [
        {"workload": workload, "windows": row["windows"], "load": row["load"]}
        for workload, row in fewest.items()
    ]


def level_name(level: float) -> str:
    """Returns the column of a level, e.g. "above_96"."""
    return f"above_{round(100 * level)}"


def window_hold_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns per workload, policy, net and level the highest load whose windows stay above it.

    The curve falls with load; the load is where it crosses WINDOW_SHARE for the first time,
    between two loads by linear interpolation. 0 if the lowest load is not held; where the highest
    one is held it is the result, and `open_end` is true.
    """
    curves: dict[tuple[str, str, bool], list[Row]] = {}
    for row in rows:
        curves.setdefault((row["workload"], row["policy"], row["safety_net"]), []).append(row)
    held = []
    for (workload, policy, net), curve in curves.items():
        points = sorted(curve, key=lambda row: row["load"])
        loads = [row["load"] for row in points]
        for level in WINDOW_LEVELS:
            shares = [row[level_name(level)] for row in points]
            load, open_end = crossing(loads, shares, WINDOW_SHARE)
            held.append(
                {
                    "workload": workload,
                    "policy": policy,
                    "safety_net": net,
                    "level": level,
                    "load": rounded(load),
                    "open_end": open_end,
                }
            )
    return held


def window_bound_hold_rows(rows: Sequence[Row]) -> list[Row]:
    """Returns per workload and level the highest load at which the bound keeps its windows above.

    Beyond it no policy can; see `window_hold_rows` for the columns, `window_bound_rows` for `rows`.
    """
    held = window_hold_rows([{**row, "policy": "", "safety_net": True} for row in rows])
    left_out = ("policy", "safety_net")
    return [{k: v for k, v in row.items() if k not in left_out} for row in held]


def crossing(loads: Sequence[float], values: Sequence[float], limit: float) -> tuple[float, bool]:
    """Returns where a falling curve first goes below a limit, and whether it never does."""
    for index, value in enumerate(values):
        if value >= limit:
            continue
        if index == 0:
            return 0.0, False
        before = values[index - 1]
        share = (before - limit) / (before - value)
        return loads[index - 1] + share * (loads[index] - loads[index - 1]), False
    return loads[-1], True
