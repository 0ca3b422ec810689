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


WARM_UP_S = 1.0
"""Left out at the start of every run: routers have no estimate of the rate yet."""
SQUARE_PERIOD_S = 4.0
"""Of the square wave, about."""
MARKOV_FACTORS = (0.3, 1.0, 2.2)
"""Rates of the Markov-modulated states, relative to each other; all states are equally likely."""
MARKOV_DWELL_S = 2.0


def _markov(rate_rps: float, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    unit_rps = rate_rps * len(MARKOV_FACTORS) / sum(MARKOV_FACTORS)
    rates_rps = [factor * unit_rps for factor in MARKOV_FACTORS]
    return markov_modulated(rates_rps, MARKOV_DWELL_S, duration_s, rng)


def whole_periods_s(duration_s: float, period_s: float) -> float:
    """Returns about a duration, seconds: after the warm-up whole periods of a wave, one at least.

    A run that ends between two bursts would have another mean rate than its load says.
    """
    return WARM_UP_S + period_s * max(1, round((duration_s - WARM_UP_S) / period_s))


def _square_wave(
    rate_rps: float, duration_s: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    # The run's length is given, so it is the period that gives way.
    seen_s = duration_s - WARM_UP_S if duration_s > WARM_UP_S else duration_s
    period_s = seen_s / max(1, round(seen_s / SQUARE_PERIOD_S))
    return square_wave(0.4 * rate_rps, 1.6 * rate_rps, period_s, duration_s, rng)


SCENARIOS: Mapping[str, Scenario] = {
    s.name: s
    for s in (
        Scenario("poisson", poisson),
        Scenario("gamma-cv4", lambda rate, duration, rng: gamma_renewal(rate, 4.0, duration, rng)),
        Scenario("gamma-cv8", lambda rate, duration, rng: gamma_renewal(rate, 8.0, duration, rng)),
        Scenario("square-wave", _square_wave),
        Scenario("markov", _markov),
    )
}
