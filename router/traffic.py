"""What a router knows of its own traffic: rates, burstiness, prompt length.

Kernels in the manner of `router.kernels`, used by the live services and compiled by the simulator.
The clock is the caller's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SHORT_TAU_S = 0.2
"""Time constant of the short arrival rate. A burst must show within a deadline: with 1 s the first
requests of a burst were still sent to large tiers, which then were in the way of the rest."""
LONG_TAU_S = 10.0
"""Time constant of the long arrival rate."""
BURSTINESS_WINDOW = 200.0
"""Gaps between arrivals that count in the estimate of how bursty they are."""
STOPPED_GAPS = 20.0
"""Traffic has stopped after so many of its mean gaps without an arrival."""
CLUMPED = 4.0
"""Burstiness from which gaps of any length are ordinary."""
WHOLE_TAUS = 40.0
"""After so many time constants 1 - exp(-age / tau) is 1 in double precision."""
MEAN_WEIGHT = 0.02
"""Weight of one value in a mean of prompt or output lengths; about the last 50 count."""


@dataclass(slots=True)
class Traffic:
    """What one router has learned from its arrivals.

    Kernels change it in place. The simulator keeps the same fields in a record per router.

    Attributes:
        last_s: time of the last arrival, seconds; at first, when the router began to listen.
        start_s: time from which rates are counted, seconds; infinite before the first arrival. The
            time before that says nothing about a traffic that could not reach the router yet.
        short: sum of 1/tau per arrival, decaying with `SHORT_TAU_S`, as of `last_s`.
        long: the same with `LONG_TAU_S`.
        mean_prompt: mean prompt length of recent requests, what was cached left out, tokens; 0 =
            unknown.
        gap_s: mean gap between arrivals, seconds.
        gap_square_s2: mean square of the gaps.
        gaps: how many of them count, up to `BURSTINESS_WINDOW`.
        others_rps: mean short rate of the other routers at as many recent decisions, per second.
        returned_s: time at which traffic last came back after it had stopped, seconds; -infinite if
            it never did.
        returned_rps: what the others' rate was before, per second.
    """

    last_s: float
    start_s: float = -math.inf
    short: float = 0.0
    long: float = 0.0
    mean_prompt: float = 0.0
    gap_s: float = 0.0
    gap_square_s2: float = 0.0
    gaps: float = 0.0
    others_rps: float = 0.0
    returned_s: float = -math.inf
    returned_rps: float = 0.0


def decayed(value: float, elapsed_s: float, tau_s: float) -> float:
    """Returns an exponentially weighted sum after `elapsed_s` without an arrival."""
    return value * math.exp(-max(0.0, elapsed_s) / tau_s)


def rate_from_sum(value: float, age_s: float, tau_s: float) -> float:
    """Returns the rate that a decayed sum of 1/tau per arrival stands for.

    Unbiased for a steady rate once the sum has run for a few tau; before, it is divided by the
    weight seen in `age_s` since its start. The floor of a tenth of tau keeps the first arrivals
    from reading as an infinite rate.
    """
    if age_s > WHOLE_TAUS * tau_s:
        return value  # the weight is 1 to the last digit
    return value / (1.0 - math.exp(-max(age_s, 0.1 * tau_s) / tau_s))


def moved(mean: float, value: float) -> float:
    """Returns an exponentially weighted mean after one more value."""
    return mean + MEAN_WEIGHT * (value - mean)


def count_arrival(traffic: Traffic, now_s: float, prompt_tokens: float) -> None:
    """Counts a request that arrives at `now_s`; a clock that steps back counts as no time."""
    gap_s = max(0.0, now_s - traffic.last_s)
    short = decayed(traffic.short, gap_s, SHORT_TAU_S)
    traffic.long = decayed(traffic.long, gap_s, LONG_TAU_S) + 1.0 / LONG_TAU_S
    # Since when the first one could have come nobody knows: a long wait for it is no gap.
    is_gap = traffic.start_s > -math.inf or gap_s <= SHORT_TAU_S
    if traffic.start_s == -math.inf:
        traffic.start_s = now_s
    mean_gap_s = traffic.gap_s
    is_return = has_stopped(traffic, gap_s)
    if is_return:
        traffic.returned_s = now_s
        traffic.returned_rps = traffic.others_rps
        short = max(short, 1.0 / mean_gap_s)
        # In full it would make steady traffic read as clumps, and the next stop as ordinary.
        gap_s = STOPPED_GAPS * mean_gap_s
    if is_gap:
        traffic.gaps = min(traffic.gaps + 1.0, BURSTINESS_WINDOW)
        traffic.gap_s += (gap_s - mean_gap_s) / traffic.gaps
        traffic.gap_square_s2 += (gap_s * gap_s - traffic.gap_square_s2) / traffic.gaps
    if is_return:  # less is expected next time, as of the own: a trickle is no burst for long
        traffic.others_rps *= mean_gap_s / traffic.gap_s
    traffic.short = short + 1.0 / SHORT_TAU_S
    traffic.last_s = max(traffic.last_s, now_s)
    if traffic.mean_prompt <= 0.0:
        traffic.mean_prompt = prompt_tokens
    traffic.mean_prompt = moved(traffic.mean_prompt, prompt_tokens)


def remembered(traffic: Traffic) -> tuple[float, ...]:
    """Returns all that is known of the traffic, for `restore`."""
    return (
        traffic.last_s, traffic.start_s, traffic.short, traffic.long, traffic.mean_prompt,
        traffic.gap_s, traffic.gap_square_s2, traffic.gaps,
        traffic.others_rps, traffic.returned_s, traffic.returned_rps,
    )  # fmt: skip


def restore(traffic: Traffic, before: tuple[float, ...]) -> None:
    """Forgets what came since `remembered`: an arrival that turned out to be none.

    No device would take up a request whose deadline nobody could meet. If it counted, one caller
    with such deadlines would have all others take smaller tiers.
    """
    (
        traffic.last_s, traffic.start_s, traffic.short, traffic.long, traffic.mean_prompt,
        traffic.gap_s, traffic.gap_square_s2, traffic.gaps,
        traffic.others_rps, traffic.returned_s, traffic.returned_rps,
    ) = before  # fmt: skip


def count_cached(traffic: Traffic, cached_tokens: float) -> None:
    """Takes what is cached of the prompt counted last out of the mean.

    A mean prompt says what devices have to compute for a request: cached tokens are not of it.
    """
    traffic.mean_prompt = max(1.0, traffic.mean_prompt - MEAN_WEIGHT * cached_tokens)


def has_stopped(traffic: Traffic, gap_s: float) -> bool:
    """Returns whether traffic had stopped before the arrival that ends a gap of `gap_s` seconds.

    A rate over 0.2 s takes a third of a deadline to be told, time in which a burst that meets idle
    devices gets large tiers. So traffic that comes back is taken for what it was before it stopped.
    Not so where arrivals come in clumps: there any gap is ordinary, and no clump is like the last.
    """
    return (
        gap_s > SHORT_TAU_S
        and traffic.gap_s > 0.0
        and gap_s > STOPPED_GAPS * traffic.gap_s
        and burstiness(traffic) < CLUMPED
    )


def others_rate_rps(traffic: Traffic, told_rps: float, told_s: float) -> float:
    """Returns arrivals per second at the other routers over about 0.2 s.

    What comes back to one router comes back to all, and a state from before cannot tell. So until
    one comes that can, the others' traffic is taken for what it was, as the own is.

    Args:
        traffic: of this router.
        told_rps: the others' rate by the newest state, per second.
        told_s: time of that state, seconds.
    """
    if told_s < traffic.returned_s + SHORT_TAU_S:
        return max(told_rps, traffic.returned_rps)
    return told_rps


def note_others(traffic: Traffic, rate_rps: float) -> None:
    """Remembers the others' rate that a decision was taken by, per second."""
    traffic.others_rps += (rate_rps - traffic.others_rps) / max(1.0, traffic.gaps)


def short_sum(traffic: Traffic, now_s: float) -> float:
    """Returns the decayed sum behind the short rate, which adds up over routers."""
    return decayed(traffic.short, now_s - traffic.last_s, SHORT_TAU_S)


def long_sum(traffic: Traffic, now_s: float) -> float:
    """Returns the decayed sum behind the long rate, which adds up over routers."""
    return decayed(traffic.long, now_s - traffic.last_s, LONG_TAU_S)


def age_s(traffic: Traffic, now_s: float) -> float:
    """Returns for how long rates have been counted, seconds."""
    return max(now_s, traffic.last_s) - traffic.start_s


def short_rate_rps(traffic: Traffic, now_s: float) -> float:
    """Returns this router's arrivals per second over about 0.2 s."""
    return rate_from_sum(short_sum(traffic, now_s), age_s(traffic, now_s), SHORT_TAU_S)


def long_rate_rps(traffic: Traffic, now_s: float) -> float:
    """Returns this router's arrivals per second over about 10 s."""
    return rate_from_sum(long_sum(traffic, now_s), age_s(traffic, now_s), LONG_TAU_S)


def burstiness(traffic: Traffic) -> float:
    """Returns the squared coefficient of variation of gaps between arrivals, 1 if unknown.

    1 for Poisson arrivals, 64 for a renewal process of CV 8; from 0 (a clock's ticks) to 1000. A
    rate alone cannot tell a burst that will go on (the rate has risen) from one that is over as it
    is seen (arrivals come in clumps): in clumped traffic the short rate says nothing about what
    comes next. A plain mean over the first `BURSTINESS_WINDOW` gaps, exponentially weighted after.
    """
    if not traffic.gap_s > 0.0:
        return 1.0
    return max(0.0, min(1000.0, traffic.gap_square_s2 / (traffic.gap_s * traffic.gap_s) - 1.0))
