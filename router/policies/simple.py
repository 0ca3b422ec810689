"""Policies without a view of the load: static per tier, random, round robin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from router.picker import Picker
from router.policies import scores
from router.policies.base import Parameter, PolicyParameterError, ScorePolicy
from router.types import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from router.policy import Observation


class StaticPolicy(ScorePolicy):
    """Sends every request to one tier, on the endpoint whose device has the least work.

    Where the tier is not allowed or not there, the next lower tier is taken, then the next higher.
    Parameters: none; the tier is in the name, and a picker other than `least-work` may be given.
    Fails: a large tier under a burst (every answer is late), a small one in calm (quality given
    away for nothing).
    """

    KERNEL = staticmethod(scores.score_static)
    EXPLAINS = False

    def __init__(self, name: str, tier: int, picker: str = "least-work") -> None:
        """Serves tier index `tier`; raises LookupError for an unknown picker."""
        super().__init__(name)
        self._params = [float(tier)]
        self._tier = tier
        self._picker = None if picker == "least-work" else Picker(picker)
        self._version = f"{name}@{picker}"

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the tier's least loaded allowed endpoint, or the picker's choice among them."""
        decision = super().decide(observation, rng)
        tier = int(observation.fleet.arrays.tier_C[decision.action])
        if self._picker is None:
            return decision
        row = self._picker.pick(
            observation.fleet.arrays,
            observation.load,
            observation.allowed_C,
            tier,
            observation.request.prompt_tokens,
            observation.request.output_tokens,
            rng,
        )
        return Decision(
            row,
            decision.score_C,
            decision.predicted_latency_s_C,
            decision.on_time_probability_C,
        )


class RandomPolicy(ScorePolicy):
    """Sends every request to a candidate drawn uniformly among the allowed ones.

    Parameters: none. Fails: at any load, by quality in calm and by lateness in a burst; it is the
    floor a policy must beat. Every decision states its probability.
    """

    KERNEL = staticmethod(scores.score_random)

    def decide(self, observation: Observation, rng: np.random.Generator) -> Decision:
        """Returns the candidate drawn, with its probability."""
        decision = super().decide(observation, rng)
        return Decision(
            decision.action,
            decision.score_C,
            decision.predicted_latency_s_C,
            decision.on_time_probability_C,
            behavior_probability=1.0 / float(observation.allowed_C.sum()),
        )

    def _draw(self, rng: np.random.Generator) -> float:
        return float(rng.random())


class RoundRobinPolicy(ScorePolicy):
    """Takes the allowed candidates in turn, tiers and endpoints alike.

    Parameters: none. Fails like random: one request in T goes to the large tier whatever the load.
    """

    KERNEL = staticmethod(scores.score_round_robin)

    def __init__(self, name: str, params: Mapping[str, float] | None = None) -> None:
        """Starts before the first candidate; raises PolicyParameterError if given parameters."""
        super().__init__(name, params)
        self._params = [-1.0]

    def _chosen(self, action: int) -> None:
        self._params[0] = float(action)


class ThresholdPolicy(ScorePolicy):
    """Takes the largest tier that could carry the whole estimated rate in full batches.

    Parameters: `utilisation`, the share of that capacity it plans for. Fails: between two tiers'
    capacities, where it serves all on the smaller one; in a burst, as long as the estimate lags;
    on a lost or slow device it sees only the count of devices, not the backlog.
    """

    PARAMETERS = (
        Parameter(
            "utilisation", 0.571, 0.01, 2.0, "Share of a tier's capacity that is planned for."
        ),
    )
    KERNEL = staticmethod(scores.score_threshold)


__all__ = [
    "PolicyParameterError",
    "RandomPolicy",
    "RoundRobinPolicy",
    "StaticPolicy",
    "ThresholdPolicy",
]
