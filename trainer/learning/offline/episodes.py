"""How a training run learns, what it starts from, and what one episode of it measures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from router.dqn.snapshot import Weights
from router.features import FEATURE_COUNT, SHIFT_COLUMN
from trainer.learning.network import initial_weights
from trainer.learning.offline.paired_returns import PairedSamples, paired_samples
from trainer.learning.offline.price_search import ScheduleConfig
from trainer.simulation.scenarios import Mesh, Scenario
from trainer.simulation.simulate import PolicySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ImprovementConfig:
    """How a run learns.

    Attributes:
        hidden_count: hidden units per layer.
        horizon_deadlines: time the returns span, deadlines: 2 takes in the requests that are there
            and those that arrive within one deadline.
        discount_deadlines: time constant by which later arrivals count less, deadlines. What a
            decision does to them fades, the noise does not.
        miss_cost: what a miss costs beside its reward of zero: models err, and a deadline is a
            promise.
        epsilon: share of explored decisions in those episodes that explore.
        explored_episodes: share of episodes that explore.
        kept_samples: samples kept; the oldest go first, they are of worse policies' futures.
        episodes_per_round: episodes of a round that collects.
        samples_per_episode: decisions measured in an episode, at most.
        decisions_per_episode: simulated decisions an episode's futures may take, about.
        steps_per_round: gradient steps of a round that fits.
        learning_rate: at the start of a fit; it falls to a twentieth.
        fits: from which to which share of the run a network is fitted.
        prior_futures: share of the run in which the prior drives the futures.
        search_share: share of a run's time the search for the scheduled price takes, where time
            is what limits the run.
        full_rounds: rounds of a run from which on the search is whole.
        schedule: how much is searched; None: not at all, the prior is price.
    """

    hidden_count: int = 64
    horizon_deadlines: float = 2.0
    discount_deadlines: float = 0.5
    miss_cost: float = 0.3
    epsilon: float = 0.1
    explored_episodes: float = 0.5
    kept_samples: int = 60_000
    episodes_per_round: int = 6
    samples_per_episode: int = 32
    decisions_per_episode: int = 60_000
    steps_per_round: int = 200
    learning_rate: float = 2e-3
    fits: tuple[tuple[float, float], ...] = ((0.4, 0.5), (0.85, 1.0))
    prior_futures: float = 0.7
    search_share: float = 0.35
    full_rounds: int = 120
    schedule: ScheduleConfig | None = field(default_factory=ScheduleConfig)


def start_weights(hidden_count: int, rng: np.random.Generator) -> Weights:
    """Returns the network a run starts with: the prior, on the load as reckoned (`features.py`)."""
    linear_F = np.zeros(FEATURE_COUNT, np.float32)
    linear_F[SHIFT_COLUMN] = 1.0
    return initial_weights(FEATURE_COUNT, hidden_count, rng, linear_F)


def scaled_correction(weights: Weights, scale: float) -> Weights:
    """Returns the network whose correction of the prior is `scale` times that of `weights`."""
    prior_P = np.zeros_like(weights.w3_P)
    prior_P[weights.hidden_count + SHIFT_COLUMN] = 1.0
    w3_P = prior_P + np.float32(scale) * (weights.w3_P - prior_P)
    return weights._replace(w3_P=w3_P, b3=np.float32(scale * weights.b3))


def collect_samples(
    mesh: Mesh,
    scenario: Scenario,
    episode: PolicySpec,
    future: PolicySpec,
    rng: np.random.Generator,
    config: ImprovementConfig,
) -> PairedSamples:
    """Returns the samples of one episode driven by `episode`, futures by `future`."""
    # Futures of busy scenarios are long; they get fewer of them, for the same time.
    rate_rps = len(scenario.workload) / scenario.workload.duration_s
    horizon_s = config.horizon_deadlines * mesh.deadline_s
    tiers = len(mesh.catalog.tiers)
    decisions = rate_rps * horizon_s * (tiers + 1)
    affordable = max(8, int(config.decisions_per_episode / max(decisions, 1.0)))
    explores = rng.random() < config.explored_episodes
    return paired_samples(
        scenario,
        episode,
        rng,
        future=future,
        sample_count=min(config.samples_per_episode, affordable),
        horizon_s=horizon_s,
        epsilon=config.epsilon if explores else 0.0,
        mix_T=tuple(rng.dirichlet(np.full(tiers, 0.7)).tolist()),
        miss_cost=config.miss_cost,
        discount_tau_s=config.discount_deadlines * mesh.deadline_s,
    )
