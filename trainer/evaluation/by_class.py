"""Policies beside each other, priority class by priority class, on the requests a gate simulates.

Shape letters: N requests, S scenarios.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from router.types import Priority
from trainer.evaluation.class_gap import ClassGap
from trainer.evaluation.statistics import interval
from trainer.learning.offline.training import judging_scenarios, policy_spec
from trainer.simulation.scenarios import Mesh, Scenario, mean_scores
from trainer.simulation.simulate import SimulationResult, simulate
from trainer.simulation.threads import side_by_side

_SCORES = ("performance", "availability")
_STREAM = 4
"""Of a scenario's seed; 1 to 3 are the simulator's."""
_UNKNOWN = 1.0
"""Half of an interval of one difference alone, which tells of none: scores lie between 0 and 1."""

ClassScores = Mapping[str, NDArray[np.float64]]
"""Both scores of one class by scenario, each [S]; NaN where it had no request."""


def evaluate_by_class(
    mesh: Mesh,
    policies: Sequence[tuple[str, bytes | None]],
    mix: Mapping[str, float],
    *,
    seeds: Sequence[int],
) -> tuple[list[dict[str, float]], list[list[ClassGap]]]:
    """Returns scores of policies where requests are of several classes.

    Args:
        mesh: the mesh.
        policies: names, with the snapshots of learned ones; the first is the one in question.
        mix: share of each class by name; only ratios count.
        seeds: of the scenarios, which are those of `evaluate_policy`.

    Returns:
        Mean scores of each policy over all requests; for each but the first, how the first does by
        each class beside it.

    Raises:
        UnknownPolicyError: unknown name.
        SnapshotError: a damaged snapshot.
    """
    share = [mix.get(each.label, 0.0) for each in Priority]
    scenarios = [_with_classes(each, share) for each in judging_scenarios(mesh, seeds)]
    means, by_class = [], []
    for name, snapshot in policies:
        spec = policy_spec(mesh, name, snapshot)
        results = side_by_side(
            lambda s, spec=spec: simulate(s.config, s.workload, spec, s.seed),  # type: ignore[misc]
            scenarios,
        )
        performance_S = np.array([result.performance() for result in results])
        availability_S = np.array([result.availability() for result in results])
        means.append(mean_scores(performance_S, availability_S))
        by_class.append(class_scores(results))
    return means, [gaps(by_class[0], other) for other in by_class[1:]]


def _with_classes(scenario: Scenario, share: Sequence[float]) -> Scenario:
    rng = np.random.default_rng([scenario.seed, _STREAM])
    return replace(scenario, workload=scenario.workload.with_classes(share, rng))


def class_scores(results: Sequence[SimulationResult]) -> dict[str, ClassScores]:
    """Returns the scores of each class that has requests, by its name."""
    found: dict[str, ClassScores] = {}
    for priority in Priority:
        scores_S2 = np.array([_scores(result, priority) for result in results])
        if not np.isnan(scores_S2).all():
            found[priority.label] = dict(zip(_SCORES, scores_S2.T, strict=True))
    return found


def _scores(result: SimulationResult, priority: Priority) -> tuple[float, float]:
    place_N = result.workload.place_N
    own_N = np.zeros(len(result.workload), np.bool_) if place_N is None else place_N == priority
    if not own_N.any():
        return math.nan, math.nan
    return float(result.reward_N[own_N].mean()), float(result.on_time_N[own_N].mean())


def gaps(ours: Mapping[str, ClassScores], others: Mapping[str, ClassScores]) -> list[ClassGap]:
    """Returns how a policy does beside another one on the same requests: by class and score."""
    found = []
    for name, own in ours.items():
        for score in _SCORES:
            own_S, other_S = own[score], others[name][score]
            known_S = ~(np.isnan(own_S) | np.isnan(other_S))
            gap_S = own_S[known_S] - other_S[known_S]
            found.append(
                ClassGap(
                    name,
                    score,
                    float(own_S[known_S].mean()),
                    float(other_S[known_S].mean()),
                    interval(gap_S).half if len(gap_S) > 1 else _UNKNOWN,
                )
            )
    return found
