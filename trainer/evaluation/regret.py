"""Regret: what a policy loses against the bound, beside what a baseline loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.evaluation.cases import CaseResult
from trainer.evaluation.rows import Row, measured, rounded


def regret_rows(
    results: Sequence[CaseResult], families: Mapping[str, str], baseline: str
) -> list[Row]:
    """Returns per family of shifts and net how much of a baseline's regret each policy removes.

    Removed = 1 - regret of the policy / regret of the baseline, both summed over the family's
    shifts and loads, seed by seed. Negative: the policy adds regret.

    Args:
        results: cases with bounds.
        families: family of each label; labels without one are left out.
        baseline: whose regret it is.
    """
    sums: dict[tuple[str, bool, str], dict[int, list[float]]] = {}
    for result in results:
        family = families.get(result.case.label, "")
        if not family or result.bound is None:
            continue
        for (policy, net), outcome in result.outcomes.items():
            per_seed = sums.setdefault((family, net, policy), {})
            regret = result.bound - outcome.performance
            per_seed.setdefault(result.case.seed, []).append(regret)
    rows = []
    for (family, net, policy), per_seed in sums.items():
        base = sums.get((family, net, baseline))
        if base is None:
            continue
        removed = [1.0 - sum(r) / max(sum(base[s]), 1e-12) for s, r in per_seed.items()]
        rows.append(
            {
                "family": family,
                "policy": policy,
                "safety_net": net,
                "baseline": baseline,
                **measured("regret", (sum(r) / len(r) for r in per_seed.values())),
                **measured("baseline_regret", (sum(r) / len(r) for r in base.values())),
                **measured("removed", removed),
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
