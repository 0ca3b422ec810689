"""Arrival processes by name, each of a given mean rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.workload import gamma_renewal, markov_modulated, poisson, square_wave


@dataclass(frozen=True)
class Scenario:
    """A named way to make arrivals of a mean rate.

    Attributes:
        name: for tables.
        make: arrivals of (rate_rps, duration_s, rng).
    """

    name: str
    make: Callable[[float, float, np.random.Generator], NDArray[np.float64]]


SCENARIOS: Mapping[str, Scenario] = {
    s.name: s
    for s in (
        Scenario("poisson", poisson),
        Scenario("gamma-cv4", lambda rate, duration, rng: gamma_renewal(rate, 4.0, duration, rng)),
        Scenario("gamma-cv8", lambda rate, duration, rng: gamma_renewal(rate, 8.0, duration, rng)),
        Scenario(
            "square-wave",
            lambda rate, duration, rng: square_wave(0.4 * rate, 1.6 * rate, 4.0, duration, rng),
        ),
        Scenario(
            "markov",
            lambda rate, duration, rng: markov_modulated(
                (0.3 * rate, rate, 2.2 * rate), 2.0, duration, rng
            ),
        ),
    )
}
