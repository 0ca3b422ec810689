"""What networks are judged by: what they earn on fixed scenarios, and what they must not lose.

Shape letters: S scenarios.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.scenarios import (
    Mesh,
    Scenario,
    evaluation_scenarios,
    mean_scores,
    steady_scenarios,
)
from trainer.simulation.simulate import PolicySpec, SimulationResult, simulate
from trainer.simulation.threads import side_by_side

VALIDATION_SEEDS = (700_001, 700_002)
AVAILABILITY_GOAL = 0.99
HARM_COST = 0.5
"""What is charged, beside the loss itself, where a network earns less than the prior."""


def earned(
    spec: PolicySpec, scenarios: Sequence[Scenario]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns performance and availability per scenario [S]."""

    def run(s: Scenario) -> SimulationResult:
        return simulate(s.config, s.workload, spec, s.seed)

    results = side_by_side(run, scenarios)
    performance_S = np.array([result.performance() for result in results])
    return performance_S, np.array([result.availability() for result in results])


def score(spec: PolicySpec, scenarios: Sequence[Scenario]) -> dict[str, float]:
    """Returns mean performance, mean and worst availability over scenarios."""
    return mean_scores(*earned(spec, scenarios))


class Validation:
    """Scores policies beside price and the prior."""

    def __init__(
        self, mesh: Mesh, price: PolicySpec, scenarios: Sequence[Scenario] | None = None
    ) -> None:
        """Finds what price earns; until `follow` nothing is charged as harm.

        Args:
            mesh: the mesh.
            price: the price policy.
            scenarios: what policies are scored on; None: the mesh's own, on VALIDATION_SEEDS.
        """
        self._scenarios = scenarios or [
            *evaluation_scenarios(mesh, VALIDATION_SEEDS, requests=800),
            *steady_scenarios(mesh, VALIDATION_SEEDS[0], requests=800),
        ]
        performance_S, availability_S = earned(price, self._scenarios)
        # What price itself misses is no goal: no policy can answer what no device has time for.
        self._goal_S = np.minimum(AVAILABILITY_GOAL, availability_S)
        self._prior_S = np.full(len(self._scenarios), -np.inf)
        self.price_score = self._judge(performance_S, availability_S)
        """Score of price."""

    def follow(self, prior: PolicySpec) -> float:
        """Charges harm beside this policy from now on; returns its score."""
        self._prior_S, availability_S = earned(prior, self._scenarios)
        return self._judge(self._prior_S, availability_S)

    def score(self, spec: PolicySpec) -> float:
        """Returns the score of a policy."""
        return self._judge(*earned(spec, self._scenarios))

    def _judge(
        self, performance_S: NDArray[np.float64], availability_S: NDArray[np.float64]
    ) -> float:
        """Returns mean performance, less twice what availability lacks of its goal, less harm.

        Harm is what the prior earned more, scenario by scenario: what a fit gains in many places it
        must not pay for with a few.
        """
        lacking_S = np.maximum(0.0, self._goal_S - availability_S)
        harm_S = np.maximum(0.0, self._prior_S - performance_S)
        return float((performance_S - 2.0 * lacking_S - HARM_COST * harm_S).mean())
