"""What an offline run is a function of, together with its mesh and its seed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What limits a run.

    Attributes:
        seconds: time to take, compiling not counted.
        rounds: rounds to do instead of what the time allows: the result is then a function of mesh,
            config and seed alone, whatever the machine's speed. None: as many as there is time for.
    """

    seconds: float
    rounds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSearchConfig:
    """How much is searched for a scheduled price.

    Attributes:
        step: ladder load between knots.
        generations: of a knot, for each pass over the knots; steps narrow from pass to pass.
        population: members of a generation.
        requests: of one simulation, about.
    """

    step: float = 0.16
    generations: tuple[int, ...] = (18, 14, 10)
    population: int = 12
    requests: int = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedConfig:
    """How the network is fitted to paired returns.

    Attributes:
        batch_size: decisions per step.
        average_rate: share of the newest weights that the exported average takes over per step.
        huber_delta: error at which the loss turns linear, in requests' worth. Not small: what a
            decision does to others is rarely much and mostly nothing, and its mean is wanted.
        largest_gap: differences are cut at this many requests' worth; larger ones come from rare
            collapses.
        weight_decay: of AdamW, per unit of the learning rate.
        shrinkage: weight of the mean square of what the network adds to price on the load as
            reckoned, which keeps it at nothing where returns say nothing. Returns are so noisy
            that without it a network is worse than price.
        gradient_norm_limit: longest gradient.
    """

    batch_size: int = 512
    average_rate: float = 0.01
    huber_delta: float = 2.0
    largest_gap: float = 4.0
    weight_decay: float = 0.3
    shrinkage: float = 2.0
    gradient_norm_limit: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OfflineConfig:
    """How a run learns.

    Attributes:
        hidden_count: hidden units per layer.
        episode_requests: requests of a training episode, about.
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
        search: how much is searched; None: not at all, the prior is price.
        paired: how the network is fitted.
    """

    hidden_count: int = 64
    episode_requests: int = 2_000
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
    search: PriceSearchConfig | None = field(default_factory=PriceSearchConfig)
    paired: PairedConfig = field(default_factory=PairedConfig)
