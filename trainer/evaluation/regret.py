"""Regret: what a policy loses against the bound, beside what a baseline loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.evaluation.cases import CaseResult
from trainer.evaluation.rows import Row, measured


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
