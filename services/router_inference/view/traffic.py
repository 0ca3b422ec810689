"""How fast requests arrive, here and at the other routers, and how answers keep to predictions."""

from __future__ import annotations

from router import slowdown, traffic
from router.slowdown import Slowdown
from router.traffic import Traffic
from router.types import Signals


class TrafficView:
    """Arrivals and ends at this router, and the other routers' rates as last heard."""

    def __init__(self, now_s: float) -> None:
        """Starts with no traffic, at `now_s` monotonic seconds."""
        self._own = Traffic(now_s)
        self._slowdown = Slowdown()
        self._window_s = 0.0
        self._heard_s: float | None = None
        self._other_rate_rps = 0.0
        self._all_long_rps = 0.0

    def on_arrival(self, now_s: float, prompt_tokens: float) -> None:
        """Counts a request."""
        traffic.count_arrival(self._own, now_s, prompt_tokens)

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

    def apply(self, other_rate_rps: float, all_long_rps: float, now_s: float) -> None:
        """Takes in the others' short rate and everybody's long rate."""
        self._heard_s = now_s
        self._other_rate_rps = other_rate_rps
        self._all_long_rps = all_long_rps

    def forget(self) -> None:
        """Goes on with the own traffic alone."""
        self._heard_s = None

    def signals(self, now_s: float, window_s: float | None = None) -> Signals:
        """Returns what is known of the traffic, for a request of `window_s` to its deadline.

        Without `window_s` it is that of the last request that named one.
        """
        if window_s is not None:
            self._window_s = window_s
        short, long = self.own_rate_rps(now_s), traffic.long_rate_rps(self._own, now_s)
        others, all_long, age_s = 0.0, long, 0.0
        if self._heard_s is not None:
            # The state's long rate trails and contains our own; it can only add to what we see
            # ourselves.
            others, all_long = self._other_rate_rps, max(long, self._all_long_rps)
            age_s = now_s - self._heard_s
        return Signals(
            short + others,
            all_long,
            age_s,
            self._own.mean_prompt,
            own_share=long / all_long if others > 0.0 and all_long > 0.0 else 1.0,
            own_rate_rps=short,
            burstiness=traffic.burstiness(self._own),
            slowdown=self.latency_slowdown(now_s),
        )

    def own_rate_rps(self, now_s: float) -> float:
        """Returns arrivals at this router per second, over about 0.2 s."""
        return traffic.short_rate_rps(self._own, now_s)

    def latency_slowdown(self, now_s: float) -> float:
        """Returns how much slower answers came lately than predicted, 1 or more."""
        return slowdown.factor(self._slowdown, now_s, self._window_s)
