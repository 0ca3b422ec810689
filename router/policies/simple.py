"""Policies without a view of the backlog: static, random, round robin, threshold, prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.policies import baselines, scores
from router.policies.base import Parameter, PolicyParameterError, ScorePolicy
from router.types import Decision

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from router.policy import Observation


class StaticPolicy(ScorePolicy):
    """Sends every request to one tier, on the endpoint whose device has the least work.

    Where the tier is not allowed or not there, the next lower tier is taken, then the next higher.
    Parameters: none; the tier is in the name. Fails: a large tier under a burst (every answer is
    late), a small one in calm (quality given away for nothing).
    """

    KERNEL = staticmethod(scores.score_static)
    EXPLAINS = False

    def __init__(self, name: str, tier: int) -> None:
        """Serves tier index `tier`."""
        super().__init__(name)
        self._params = [float(tier)]
        self._version = f"{name}@least-work"


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

    Parameters: `top_utilisation` and `utilisation`, the shares of that capacity it plans for on
    the largest tier and on those below it. Fails: between two tiers' capacities, where it serves
    all on the smaller one; in a burst, as long as the estimate lags; on a lost or slow device it
    sees only the count of devices, not the backlog.
    """

    PARAMETERS = (
        Parameter("top_utilisation", 0.554, 0.01, 2.0, "Planned share of the largest tier."),
        Parameter("utilisation", 1.269, 0.01, 2.0, "Planned share of the tiers below it."),
    )
    KERNEL = staticmethod(baselines.score_threshold)


class GreedyPriorPolicy(ScorePolicy):
    """Takes the largest tier whose latency by the profile alone fits the slack; sees no load.

    Parameters: `margin`, the share of the slack a latency may use; `typical_batch`, the batch it
    assumes, as a share of the largest one. Fails: wherever load matters. It gives every request of
    one length and one deadline the same tier, so it is a static policy in calm and in a burst.
    """

    PARAMETERS = (
        Parameter("margin", 0.8, 0.02, 1.0, "Share of the slack a latency may use."),
        Parameter("typical_batch", 0.25, 0.0, 1.0, "Assumed batch / largest batch."),
    )
    KERNEL = staticmethod(baselines.score_greedy_prior)


__all__ = [
    "GreedyPriorPolicy",
    "PolicyParameterError",
    "RandomPolicy",
    "RoundRobinPolicy",
    "StaticPolicy",
    "ThresholdPolicy",
]
