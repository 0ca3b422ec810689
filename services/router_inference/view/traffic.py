"""How fast requests arrive, here and at the other routers, and how answers keep to predictions."""

from __future__ import annotations

import math

from router import reserve, slowdown, traffic
from router.policies.scores import Query
from router.reserve import Peaks
from router.slowdown import Slowdown
from router.traffic import Traffic
from router.types import Request
from services.router_inference.workers.siblings import NoSiblings


class Arrivals:
    """Arrivals at this router: at this process and at its siblings."""

    def __init__(self, now_s: float, siblings: NoSiblings) -> None:
        """Starts at `now_s` monotonic seconds, with no traffic or that of a predecessor."""
        self._siblings = siblings
        self._own = siblings.first_arrivals(now_s)
        # What a share of the arrivals looks like says nothing of how bursty all of them are.
        self._gaps = self._own if siblings.is_alone else Traffic(now_s)
        self._own_before = traffic.remembered(self._own)
        self._gaps_before = traffic.remembered(self._gaps)

    def count(self, now_s: float, prompt_tokens: float) -> None:
        """Counts a request."""
        self._own_before = traffic.remembered(self._own)
        if self._gaps is not self._own:
            self._gaps_before = traffic.remembered(self._gaps)
            others = self._siblings.other_arrivals()
            self._gaps.last_s = max([self._own.last_s, *(other.last_s for other in others)])
            traffic.count_arrival(self._gaps, now_s, prompt_tokens)
        traffic.count_arrival(self._own, now_s, prompt_tokens)
        self._siblings.show_arrivals(self._own)

    def take_back(self) -> None:
        """Forgets the request that was counted last, and what was decided for it."""
        traffic.restore(self._own, self._own_before)
        if self._gaps is not self._own:
            traffic.restore(self._gaps, self._gaps_before)
        self._siblings.show_arrivals(self._own)

    def count_cached(self, tokens: float) -> None:
        """Takes what is cached of the prompt counted last out of the mean."""
        traffic.count_cached(self._own, tokens)

    def rates_rps(self, now_s: float) -> tuple[float, float]:
        """Returns arrivals per second over about 0.2 s and over about 10 s."""
        own = self._own
        short, long = traffic.short_sum(own, now_s), traffic.long_sum(own, now_s)
        age_s = traffic.age_s(own, now_s)
        for other in self._siblings.other_arrivals():
            short += traffic.short_sum(other, now_s)
            long += traffic.long_sum(other, now_s)
            # The age of one that has seen no arrival yet is infinite.
            ages_s = age_s, traffic.age_s(other, now_s)
            age_s = ages_s[1] if math.isinf(age_s) else max(ages_s)
        return (
            traffic.rate_from_sum(short, age_s, traffic.SHORT_TAU_S),
            traffic.rate_from_sum(long, age_s, traffic.LONG_TAU_S),
        )

    def others_rps(self, told_rps: float, told_s: float) -> float:
        """Returns the other routers' arrivals per second, for a decision that is to be taken now.

        Args:
            told_rps: by the newest state.
            told_s: since when that holds, monotonic seconds.
        """
        rate_rps = traffic.others_rate_rps(self._own, told_rps, told_s)
        traffic.note_others(self._own, rate_rps)
        return rate_rps

    def age_s(self, now_s: float) -> float:
        """Returns for how long arrivals at this process have been counted, seconds."""
        return traffic.age_s(self._own, now_s)

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean new prompt tokens of recent requests at this process; 0 = unknown."""
        return self._own.mean_prompt

    def burstiness(self) -> float:
        """Returns how bursty arrivals are; see `router.traffic.burstiness`."""
        return traffic.burstiness(self._gaps)


class TrafficView:
    """Arrivals and ends at this router, and the other routers' rates as last heard."""

    def __init__(self, now_s: float, siblings: NoSiblings) -> None:
        """Starts with no traffic, at `now_s` monotonic seconds."""
        self._own = Arrivals(now_s, siblings)
        self._slowdown = Slowdown()
        self._peaks = Peaks()
        self.reserve = 0.0
        """Share of the last minute's highest rate that room is kept for; see `router.reserve`."""
        self._window_s = 0.0
        self._told_s: float | None = None
        self._other_rate_rps = 0.0
        self._all_long_rps = 0.0
        self._other_long_rps: float | None = None

    def on_arrival(self, now_s: float, prompt_tokens: float) -> None:
        """Counts a request."""
        self._own.count(now_s, prompt_tokens)

    def on_impossible(self) -> None:
        """Learns that the request counted last could not be in time on idle devices either."""
        self._own.take_back()

    def on_cached(self, tokens: float) -> None:
        """Learns how much is cached of the prompt that came last, where that goes."""
        self._own.count_cached(tokens)

    def on_compared(
        self, now_s: float, window_s: float, taken_s: float, predicted_s: float, *, finished: bool
    ) -> None:
        """Learns how predictions, as corrected for slow devices, compare with what came.

        Args:
            now_s: when the request ended, monotonic seconds.
            window_s: its deadline, as time from its arrival, seconds.
            taken_s: time from dispatch to its end, or until the deadline cut it off, seconds.
            predicted_s: predicted time to the complete answer, seconds.
            finished: False if it was cut off.
        """
        slowdown.compare(self._slowdown, now_s, window_s, taken_s, predicted_s, finished)

    def apply(
        self,
        other_rate_rps: float,
        all_long_rps: float,
        other_long_rps: float | None,
        told_s: float,
    ) -> None:
        """Takes in what a state tells of the traffic.

        Args:
            other_rate_rps: the others' arrivals per second over about 0.2 s.
            all_long_rps: everybody's over about 10 s, as the monitor reckons it.
            other_long_rps: the others', as they reckon them; None if the state does not tell.
            told_s: when the others told that, monotonic seconds.
        """
        self._told_s = told_s
        self._other_rate_rps = other_rate_rps
        self._all_long_rps = all_long_rps
        self._other_long_rps = other_long_rps

    def forget(self) -> None:
        """Goes on with the own traffic alone."""
        self._told_s = None

    @property
    def mean_prompt_tokens(self) -> float:
        """Mean of what recent prompts had that was not cached, tokens; 0 = unknown."""
        return self._own.mean_prompt_tokens

    def query(
        self,
        request: Request,
        now_s: float,
        pressure: float = 0.0,
        is_small: bool = False,
        log_price: float = 0.0,
    ) -> Query:
        """Returns a request that is to be decided for, and what is known of the traffic.

        Args:
            request: the request.
            now_s: the present, monotonic seconds.
            pressure: on the price of device time, to hold a target.
            is_small: the smallest tier is to be taken.
            log_price: what its priority class adds to the pressure.
        """
        self._window_s = request.slack_s
        short, long = self._own.rates_rps(now_s)
        others, all_long, age_s = 0.0, long, 0.0
        if self._told_s is not None:
            others = self._own.others_rps(self._other_rate_rps, self._told_s)
            age_s = max(0.0, now_s - self._told_s)
            if self._other_long_rps is not None:
                all_long += self._other_long_rps
            else:
                # It trails and contains our own rate: it can only add to what we see ourselves.
                all_long = max(long, self._all_long_rps)
        own_share = long / all_long if others > 0.0 and all_long > 0.0 else 1.0
        rate = short + others
        if self.reserve > 0.0:
            reserve.note(self._peaks, rate, self._own.age_s(now_s), now_s)
            least = self.kept_rps()
            rate, all_long = max(rate, least), max(all_long, least)
            short = max(short, least * own_share)
        return Query(
            request.task, request.slack_s, request.prompt_tokens, request.output_tokens,
            request.event_tokens, request.reward_decay_s, self._own.mean_prompt_tokens,
            rate, all_long, age_s, 0.0, own_share, short, self._own.burstiness(),
            self.latency_slowdown(now_s), pressure, float(is_small),
            log_price, request.token_interval_s,
        )  # fmt: skip

    def kept_rps(self) -> float:
        """Returns the arrival rate that room is kept for, per second; 0 = none."""
        return reserve.least_rate_rps(self._peaks, self.reserve)

    def own_rate_rps(self, now_s: float) -> float:
        """Returns arrivals at this router per second, over about 0.2 s."""
        return self.own_rates_rps(now_s)[0]

    def own_rates_rps(self, now_s: float) -> tuple[float, float]:
        """Returns arrivals at this router per second, over about 0.2 s and over about 10 s."""
        return self._own.rates_rps(now_s)

    def latency_ratio(self, now_s: float) -> float:
        """Returns the recent mean of observed over predicted latency, 1 where nothing is known."""
        return slowdown.mean_ratio(self._slowdown, now_s, self._window_s)

    def latency_slowdown(self, now_s: float) -> float:
        """Returns how much slower answers came lately than predicted, 1 or more."""
        return slowdown.factor(self._slowdown, now_s, self._window_s)
