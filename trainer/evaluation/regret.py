"""Regret: what a policy loses against the bound, beside what a baseline loses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from trainer.evaluation.cases import CaseResult
from trainer.evaluation.rows import DIGITS, Row, grouped, measured, ratio_of_means, rounded

SHIFT_AVAILABILITY = 0.98
"""Availability a policy must keep under a shift; where always-small has it, it copes."""
LEAST_REGRET = 1e-4
"""Of a baseline whose regret is less there is nothing to remove, and no share is given."""

Points = Collection[tuple[str, float, bool]]
"""Shift, load, safety net."""


def coping_points(shift_rows: Sequence[Row], small: str) -> Points:
    """Returns the points of the shifts at which always-small holds SHIFT_AVAILABILITY."""
    return {
        (row["shift"], row["load"], row["safety_net"])
        for row in shift_rows
        if row["policy"] == small and row["availability"] >= SHIFT_AVAILABILITY
    }


def regret_rows(
    results: Sequence[CaseResult],
    families: Mapping[str, str],
    baseline: str,
    points: Points | None = None,
) -> list[Row]:
    """Returns per family of shifts and net how much of a baseline's regret each policy removes.

    Removed = 1 - regret of the policy / regret of the baseline, both summed over the family's
    shifts and loads, seed by seed. Negative: the policy adds regret. None where the baseline
    has next to none (LEAST_REGRET).

    Args:
        results: cases with bounds.
        families: family of each label; labels without one are left out.
        baseline: whose regret it is.
        points: the shifts and loads that count; None: all.
    """
    sums: dict[tuple[str, bool, str], dict[int, list[float]]] = {}
    for result in results:
        family = families.get(result.case.label, "")
        if not family or result.bound is None:
            continue
        for (policy, net), outcome in result.outcomes.items():
            if points is not None and _point(result, net) not in points:
                continue
            per_seed = sums.setdefault((family, net, policy), {})
            regret = result.bound - outcome.performance
            per_seed.setdefault(result.case.seed, []).append(regret)
    rows = []
    for (family, net, policy), per_seed in sums.items():
        base = sums.get((family, net, baseline))
        if base is None:
            continue
        base_means = [sum(r) / len(r) for r in base.values()]
        removed: Row = {"removed": None, "removed_ci95": None}
        if np.mean(base_means) >= LEAST_REGRET:
            shares = (1.0 - sum(r) / max(sum(base[s]), 1e-12) for s, r in per_seed.items())
            removed = measured("removed", shares)
        rows.append(
            {
                "family": family,
                "policy": policy,
                "safety_net": net,
                "baseline": baseline,
                "points": max(len(r) for r in per_seed.values()),
                **measured("regret", (sum(r) / len(r) for r in per_seed.values())),
                **measured("baseline_regret", base_means),
                **removed,
            }
        )
    return rows


def _point(result: CaseResult, net: bool) -> tuple[str, float, bool]:
    return result.case.label, round(result.case.load, DIGITS), net


def regret_point_rows(
    results: Sequence[CaseResult],
    families: Mapping[str, str],
    baseline: str,
    points: Points,
) -> list[Row]:
    """Returns the same per shift and load: where regret is removed, and where it is added.

    Removed = 1 - mean regret of the policy / mean regret of the baseline; None where the baseline
    has next to none (LEAST_REGRET).

    Args:
        results: cases with bounds.
        families: family of each label.
        baseline: whose regret it is.
        points: where always-small copes.
    """
    rows = []
    for (label, load, policy, net), found in grouped(results).items():
        known = [
            (result.bound, outcome, result) for outcome, result in found if result.bound is not None
        ]
        if not known or (baseline, net) not in known[0][2].outcomes:
            continue
        own = [bound - outcome.performance for bound, outcome, _ in known]
        theirs = [bound - r.outcomes[baseline, net].performance for bound, _, r in known]
        removed: Row = {"removed": None, "removed_ci95": None}
        if np.mean(theirs) >= LEAST_REGRET:
            removed = measured("removed", 1.0 - ratio_of_means(own, theirs))
        rows.append(
            {
                "shift": label,
                "family": families.get(label, ""),
                "load": rounded(load),
                "policy": policy,
                "safety_net": net,
                "baseline": baseline,
                "small_copes": _point(known[0][2], net) in points,
                **measured("regret", own),
                **measured("baseline_regret", theirs),
                **removed,
            }
        )
    return rows


def gap_rows(results: Sequence[CaseResult], policy: str, leave_out: Sequence[str]) -> list[Row]:
    """Returns per load and net how far a policy is from the best of the others, in pairs.

    The best is the one of the highest mean performance; the gap is taken seed by seed, on the same
    requests, so that its interval is free of what the requests themselves vary.

    Args:
        results: cases of the sweep.
        policy: whose gap it is; without it there are no rows.
        leave_out: policies that are no baselines.
    """
    scores: dict[tuple[float, bool], dict[str, list[float]]] = {}
    for result in results:
        for (name, net), outcome in result.outcomes.items():
            by_name = scores.setdefault((result.case.load, net), {})
            by_name.setdefault(name, []).append(outcome.performance)
    rows = []
    for (load, net), by_name in scores.items():
        rivals = [name for name in by_name if name != policy and name not in leave_out]
        if policy not in by_name or not rivals:
            continue
        best = max(rivals, key=lambda name: sum(by_name[name]))
        pairs = zip(by_name[policy], by_name[best], strict=True)
        rows.append(
            {
                "policy": policy,
                "safety_net": net,
                "load": rounded(load),
                "best_baseline": best,
                **measured("gap", (own - other for own, other in pairs)),
            }
        )
    return rows
