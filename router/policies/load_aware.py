"""Policies that look at the load: greedy, weighted, SlackFit, debt queue, fluid, price."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.policies import baselines, scores
from router.policies.base import Parameter, ScorePolicy

if TYPE_CHECKING:
    import numpy as np


class GreedyPolicy(ScorePolicy):
    """Takes the largest quality whose predicted latency fits the slack, else the fastest candidate.

    Parameters: `margin`, the share of the slack a prediction may use. Fails: under sustained
    overload. Each choice looks affordable by itself and slows everybody else, so it lives at the
    edge of the deadline and falls over it; it pays for no harm it does to others. A margin tuned to
    hold every load (0.077) is so small that it gives quality away in calm.
    """

    PARAMETERS = (Parameter("margin", 0.8, 0.05, 2.0, "Share of the slack predictions may use."),)
    KERNEL = staticmethod(scores.score_greedy)


class RouteBalancePolicy(ScorePolicy):
    """Takes the highest quality less weighted latency, queue and cost, tier and endpoint jointly.

    After RouteBalance (arXiv 2606.17949). Parameters: the three weights, against a weight of 1 for
    quality. Fails: the weights are the same in calm and in a burst, so that a setting which holds
    a burst gives quality away in calm; and it knows no deadline but through the slack as a unit.
    """

    PARAMETERS = (
        Parameter("latency", 3.07, 0.0, 5.0, "Weight of predicted latency / slack."),
        Parameter("queue", 0.799, 0.0, 5.0, "Weight of the device's backlog / slack."),
        Parameter("cost", 1.772, 0.0, 2.0, "Weight of device time / the largest tier's."),
    )
    KERNEL = staticmethod(baselines.score_routebalance)


class SlackFitPolicy(ScorePolicy):
    """Takes the largest tier whose profiled (tier, batch) latency fits the slack (SuperServe).

    Parameters: `margin`, as in greedy. Fails: where tiers share a device, since it knows each
    tier's own queue only.
    """

    PARAMETERS = (Parameter("margin", 0.8, 0.05, 2.0, "Share of the slack a latency may use."),)
    KERNEL = staticmethod(baselines.score_slackfit)


class DebtQueuePolicy(ScorePolicy):
    """Weighs quality against device time by the device's backlog (drift plus penalty, Lyapunov).

    Parameters: `weight`, what a unit of quality is worth in backlog; `step_share`, the part of a
    shared step that is charged. Fails: it holds a standing backlog in proportion to `weight` even
    in steady load, and knows deadlines only through the slack.
    """

    PARAMETERS = (
        Parameter("weight", 0.198, 1e-3, 5.0, "Worth of quality in units of backlog / slack."),
        Parameter("step_share", 0.116, 0.0, 1.0, "Share of a shared step that is charged."),
    )
    KERNEL = staticmethod(baselines.score_debt_queue)


class FluidPolicy(ScorePolicy):
    """Serves the mix of the linear program on the estimated rate, a tier lower when work piles up.

    Parameters: `utilisation`, the share of capacity that is planned; `guard`, the backlog over
    slack above which every request steps a tier down. Fails: when the estimated rate lags a burst
    (the guard then gives a whole tier away), when tasks are unequally frequent, on slow devices.
    """

    PARAMETERS = (
        Parameter("utilisation", 0.667, 0.05, 2.0, "Share of capacity that is planned."),
        Parameter("guard", 0.236, 0.01, 10.0, "Backlog / slack above which it steps down."),
    )
    KERNEL = staticmethod(baselines.score_fluid)

    def _draw(self, rng: np.random.Generator) -> float:
        return float(rng.random())


class PricePolicy(ScorePolicy):
    """Takes the highest quality x P(on time) - price x device time, over tiers and devices jointly.

    The price of a device's time is exponential in its backlog (over the slack) and in a quadratic
    of where the offered load stands between the tiers' capacities; see
    `router.policies.scores.score_price`. Every quantity is relative, so one set of parameters
    serves fleets of other sizes, profiles and deadlines. Parameters: eight, tuned by CMA-ES in the
    simulator on the `opt-a100` profile, steady and bursty
    (`python -m trainer.research.tuning price`).
    Fails: on views that are stale by more than a deadline with four routers or more, which all
    herd to the device that looked free; when the rate estimate lags by more than the backlog term
    makes up for; and where the mix of tasks makes the price right for none of them.
    """

    PARAMETERS = (
        Parameter("level", -4.636, -15.0, 5.0, "Log price of an idle device at ladder load 0."),
        Parameter("backlog", 9.379, 0.0, 40.0, "Slope in backlog / slack."),
        Parameter("load", 6.128, -5.0, 20.0, "Slope in the ladder load."),
        Parameter("load_square", -2.721, -12.0, 8.0, "Curvature in the ladder load."),
        Parameter("step_share", 0.772, 0.0, 1.0, "Share of a shared step that is charged."),
        Parameter("foresight", 0.413, 0.0, 1.0, "Share of traffic to come that shares a step."),
        Parameter("on_time_bias", 1.66, 0.2, 4.0, "Factor on predictions before P(on time)."),
        Parameter("on_time_sharpness", 4.176, 2.5, 60.0, "Sharpness of P(on time)."),
    )
    KERNEL = staticmethod(scores.score_price)
