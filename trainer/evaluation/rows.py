"""Rows of the report's tables: outcomes of the same case over seeds, as means and intervals.

A row is a plain dictionary, since it goes into `report.json` as it is. A number `x` with an
interval has a neighbour `x_ci95`: the ends of its 95 % interval over seeds, None where one seed
tells of none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.cases import Case, CaseResult, Outcome
from trainer.evaluation.statistics import Interval, interval

Row = dict[str, Any]
Group = tuple[str, float, str, bool]
"""Label, load, policy, safety net."""

DIGITS = 6
TOLERANCE = 1e-9


def measured(name: str, values: Iterable[float]) -> Row:
    """Returns a mean over seeds and the ends of its 95 % interval; None for those of one seed."""
    value_S = list(values)
    return with_ends(name, interval(value_S), len(value_S))


def with_ends(name: str, found: Interval, seed_count: int) -> Row:
    """Returns a mean over so many seeds and the ends of its interval; None for those of one."""
    ends = [rounded(found.mean - found.half), rounded(found.mean + found.half)]
    return {name: rounded(found.mean), f"{name}_ci95": ends if seed_count > 1 else None}


def ratio_of_means(top: Sequence[float], bottom: Sequence[float]) -> NDArray[np.float64]:
    """Returns a value per seed whose mean is mean(top) / mean(bottom), for `measured`.

    Ratios of single seeds have no bound where a denominator is near zero. The spread of these is
    the ratio's to first order (delta method): R + (top - R bottom) / mean(bottom).
    """
    top_S, bottom_S = np.asarray(top, np.float64), np.asarray(bottom, np.float64)
    ratio = top_S.mean() / bottom_S.mean()
    found: NDArray[np.float64] = ratio + (top_S - ratio * bottom_S) / bottom_S.mean()
    return found


def rounded(value: float) -> float | None:
    """Returns a number for JSON, which has no NaN."""
    return round(float(value), DIGITS) if math.isfinite(value) else None


def grouped(results: Iterable[CaseResult]) -> dict[Group, list[tuple[Outcome, CaseResult]]]:
    """Returns outcomes over seeds by label, load, policy and net, in the order of the cases."""
    groups: dict[Group, list[tuple[Outcome, CaseResult]]] = {}
    for result in results:
        for (policy, net), outcome in result.outcomes.items():
            key = (result.case.label, result.case.load, policy, net)
            groups.setdefault(key, []).append((outcome, result))
    return groups


def score_rows(
    results: Sequence[CaseResult],
    tiers: Sequence[str],
    fluid: Mapping[float, float] | None = None,
) -> list[Row]:
    """Returns a row per label, load, policy and net: scores, bound, latency, mix.

    Args:
        results: cases of one suite.
        tiers: names, lowest quality first.
        fluid: the fluid reference by load; None leaves its columns out.
    """
    rows = []
    for (label, load, policy, net), found in grouped(results).items():
        outcomes = [outcome for outcome, _ in found]
        bounds = [result.bound for _, result in found]
        case: Case = found[0][1].case
        row: Row = {
            "label": label,
            "policy": policy,
            "safety_net": net,
            "rate_rps": rounded(case.rate_rps),
            "load": rounded(load),
            **measured("availability", (o.availability for o in outcomes)),
            **measured("performance", (o.performance for o in outcomes)),
            **_bound_fields(outcomes, bounds),
            "p50_s": rounded(_mean(o.p50_s for o in outcomes)),
            "p99_s": rounded(_mean(o.p99_s for o in outcomes)),
            **measured("goodput_rps", (o.goodput_rps for o in outcomes)),
            **measured("smooth_goodput_rps", (o.smooth_goodput_rps for o in outcomes)),
            "tier_mix": {
                tier: rounded(_mean(o.tier_T[t] for o in outcomes)) for t, tier in enumerate(tiers)
            },
        }
        if fluid is not None:
            reference = fluid[load]
            row["fluid_reference"] = rounded(reference)
            row["fluid_share"] = rounded(row["performance"] / max(reference, 1e-12))
        rows.append(row)
    return rows


def _bound_fields(outcomes: Sequence[Outcome], bounds: Sequence[float | None]) -> Row:
    """Returns bound, share of it and regret; None throughout where there is no bound."""
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(outcomes):
        names = ("bound", "bound_share", "regret")
        return {key: None for name in names for key in (name, f"{name}_ci95")}
    pairs = list(zip(outcomes, known, strict=True))
    return {
        **measured("bound", known),
        **measured("bound_share", (o.performance / max(b, 1e-12) for o, b in pairs)),
        **measured("regret", (b - o.performance for o, b in pairs)),
    }


def _mean(values: Iterable[float]) -> float:
    """Returns the mean of those that are numbers; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan


def violations(results: Iterable[CaseResult]) -> list[Row]:
    """Returns every run in which a policy earned more than the bound says anybody can."""
    found = []
    for result in results:
        for (policy, net), outcome in result.outcomes.items():
            if result.bound is not None and outcome.performance > result.bound + TOLERANCE:
                found.append(
                    {
                        "suite": result.case.suite,
                        "label": result.case.label,
                        "load": rounded(result.case.load),
                        "seed": result.case.seed,
                        "policy": policy,
                        "safety_net": net,
                        "performance": outcome.performance,
                        "bound": result.bound,
                    }
                )
    return found


def ratio_rows(
    pairs: Sequence[tuple[str, bool]],
    held_rps: Sequence[float],
    reached: Sequence[float],
    unit_rps: float,
    large: str,
) -> list[Row]:
    """Returns the highest rate each policy holds, beside what static-large does with its net.

    Args:
        pairs: policy and safety net.
        held_rps: highest rate held, per pair.
        reached: highest load of the sweep up to which every rate is held, per pair.
        unit_rps: rate of load 1.
        large: name of static-large.
    """
    own = {net: rps for (name, net), rps in zip(pairs, held_rps, strict=True) if name == large}
    return [
        {
            "policy": name,
            "safety_net": net,
            "held_rps": rounded(rps),
            "load": rounded(rps / unit_rps),
            "ratio": rounded(rps / own[net]) if own[net] > 0.0 else None,
            "held_in_sweep": rounded(load),
        }
        for (name, net), rps, load in zip(pairs, held_rps, reached, strict=True)
    ]


def labelled(rows: Sequence[Row], key: str, value: str) -> list[Row]:
    """Returns rows with another column in place of their label, which is the same in all."""
    return [{key: value, **{k: v for k, v in row.items() if k != "label"}} for row in rows]
