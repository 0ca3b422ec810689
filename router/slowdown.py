"""How much slower answers come than predicted: a factor that each router learns from its own.

A profile is measured once; devices then throttle, drivers change, neighbours move in. The ratio of
observed to predicted latency tells within a few deadlines: in a steady simulation it stays within
0.9 to 1.1 whatever the load, and where all devices are 30 % slower than their profile it is 1.15 to
1.3 (ADR 11). Slower devices are the same as a faster clock for all the rest, so a policy that reads
`stretched` queries acts nearly as if it had been told the true costs.

Live, each device's slowness is learned too (`SlownessEstimator`) and put into the fleet, for every
policy; then the ratio is about 1, and what is left of it is what no profile has: crowds that came
after the decision, routers that saw each other late.

Kernels in the manner of `router.kernels`, used by the live services and compiled by the simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from router.policies.scores import Query
from router.safety import SHORTEST_WINDOW_S

MEMORY = 4.0
"""Deadlines after which an end counts 1/e."""
ORDINARY = 1.05
"""Mean ratio up to which nothing is amiss: predictions miss by as much either way on any day."""
DOUBT = 20.0
"""Ends that agree with the profile, taken as seen beforehand: a few tell little.

At few requests per deadline the factor therefore stays near 1; there is room then, too.
"""
LARGEST = 2.0
"""Highest factor. Beyond it the profile is wrong, not the moment."""
LARGEST_RATIO = 4.0
"""Ratio as which a single end counts at most: one straggler must not decide."""


@dataclass(slots=True)
class Slowdown:
    """What one router has learned from its ended requests.

    Kernels change it in place. The simulator keeps the same fields in a record per router.

    Attributes:
        compared: recent ends, decaying by 1/e per `MEMORY` deadlines.
        ratios: sum of observed over predicted latency of these.
        compared_s: when the above held, seconds.
    """

    compared: float = 0.0
    ratios: float = 0.0
    compared_s: float = 0.0


def compare(
    slowdown: Slowdown,
    now_s: float,
    window_s: float,
    observed_s: float,
    predicted_s: float,
    finished: bool,
) -> None:
    """Learns from the end of a request where it was first sent.

    One that was cut off took longer than it was given, nobody knows how much. Where that is less
    than the present mean it teaches nothing: else requests that never had a chance would read as
    fast devices, and the factor would fall when it should rise.

    Args:
        slowdown: of the router, changed in place.
        now_s: when it ended, seconds.
        window_s: its deadline, as time from its arrival, seconds.
        observed_s: time to the complete answer, or until it was cut off, seconds.
        predicted_s: the same as predicted at the decision; without one (0) nothing is learned.
        finished: False if it was cut off: at its deadline, or to be rescued.
    """
    if not predicted_s > 0.0 or not observed_s >= 0.0:
        return
    ratio = min(observed_s / predicted_s, LARGEST_RATIO)
    if not finished and ratio < mean_ratio(slowdown, now_s, window_s):
        return
    kept = _kept(slowdown, now_s, window_s)
    slowdown.compared = slowdown.compared * kept + 1.0
    slowdown.ratios = slowdown.ratios * kept + ratio
    slowdown.compared_s = max(slowdown.compared_s, now_s)


def mean_ratio(slowdown: Slowdown, now_s: float, window_s: float) -> float:
    """Returns the recent mean of observed over predicted latency, 1 where nothing is known."""
    kept = _kept(slowdown, now_s, window_s)
    return (DOUBT + slowdown.ratios * kept) / (DOUBT + slowdown.compared * kept)


def factor(slowdown: Slowdown, now_s: float, window_s: float) -> float:
    """Returns by what factor devices are slower than predicted, 1 to `LARGEST`.

    Never below 1: that answers come early while load is light is no reason to plan tighter.
    """
    if slowdown.ratios <= slowdown.compared:
        return 1.0  # the mean is 1 at most, however much of it is forgotten
    return max(1.0, min(LARGEST, mean_ratio(slowdown, now_s, window_s) / ORDINARY))


def stretched(query: Query) -> Query:
    """Returns a query to slower devices in their own time: less of it, and a faster world.

    What is returned has no slowdown left.
    """
    by = query.slowdown
    if not by > 1.0:
        return query
    return Query(
        query.task,
        query.slack_s / by,
        query.prompt_tokens,
        query.output_tokens,
        query.event_tokens,
        query.soft_decay_s / by,
        query.mean_prompt_tokens,
        query.rate_short_rps * by,
        query.rate_long_rps * by,
        query.state_age_s / by,
        query.draw,
        query.own_share,
        query.own_rate_rps * by,
        query.burstiness,
        1.0,
        query.pressure,
        query.is_small,
        query.log_price,
        query.token_interval_s / by,
    )


def _kept(slowdown: Slowdown, now_s: float, window_s: float) -> float:
    elapsed_s = max(0.0, now_s - slowdown.compared_s)
    return math.exp(-elapsed_s / (MEMORY * max(window_s, SHORTEST_WINDOW_S)))
