"""Estimators a router feeds: arrival rate and output length. The clock is the caller's."""

from __future__ import annotations

import math

from router import kernels

SHORT_TAU_S = 0.2
"""Time constant of the short arrival rate. A burst must show within a deadline: with 1 s the first
requests of a burst were still sent to large tiers, which then were in the way of the rest."""
LONG_TAU_S = 10.0
"""Time constant of the long arrival rate."""
BURSTINESS_WINDOW = 200.0
"""Gaps between arrivals that count in the estimate of how bursty they are."""


class RateEstimator:
    """Arrivals per second, exponentially weighted in time.

    Each arrival adds 1/tau, the sum decays with exp(-dt/tau): unbiased for a steady rate once the
    estimator has run for a few tau; before, it is divided by the weight seen so far. It runs from
    the first arrival: the time before says nothing about a traffic that could not reach it yet.
    """

    def __init__(self, tau_s: float) -> None:
        """Starts empty, with time constant `tau_s` (> 0)."""
        self._tau_s = tau_s
        self._start_s = self._last_s = -math.inf
        self._value = 0.0

    def observe(self, now_s: float, count: int = 1) -> None:
        """Counts `count` arrivals at `now_s` (monotonic seconds)."""
        if self._start_s == -math.inf:
            self._start_s = self._last_s = now_s
        self._decay(now_s)
        self._value += count / self._tau_s

    def rate_rps(self, now_s: float) -> float:
        """Returns the estimate, requests per second."""
        if self._start_s == -math.inf:
            return 0.0
        self._decay(now_s)
        return kernels.rate_from_sum(self._value, self._last_s - self._start_s, self._tau_s)

    def _decay(self, now_s: float) -> None:
        self._value = kernels.decayed(self._value, now_s - self._last_s, self._tau_s)
        self._last_s = max(self._last_s, now_s)


class BurstinessEstimator:
    """How irregularly requests arrive: the squared coefficient of variation of their gaps.

    A rate alone cannot tell a burst that will go on (the rate has risen) from one that is over as
    it is seen (arrivals come in clumps): in clumped traffic the short rate says nothing about what
    comes next. A plain mean over the first BURSTINESS_WINDOW gaps, exponentially weighted after.
    """

    def __init__(self, now_s: float) -> None:
        """Starts empty at `now_s` (monotonic seconds); reads 1, as for Poisson arrivals."""
        self._last_s = now_s
        self._count = 0.0
        self._gap_s = 0.0
        self._square_s2 = 0.0

    def observe(self, now_s: float) -> None:
        """Counts an arrival at `now_s`."""
        gap_s = max(0.0, now_s - self._last_s)
        self._last_s = now_s
        self._count = min(self._count + 1.0, BURSTINESS_WINDOW)
        self._gap_s += (gap_s - self._gap_s) / self._count
        self._square_s2 += (gap_s * gap_s - self._square_s2) / self._count

    @property
    def burstiness(self) -> float:
        """The estimate; 1 = Poisson, above = bursty."""
        return kernels.burstiness(self._gap_s, self._square_s2)


class SlownessEstimator:
    """How slow a device is beside its profile, from what answers took beside what was predicted.

    Profiles are measured at one time; processors and GPUs throttle, and neighbours come and go. The
    estimate is the geometric mean of taken/predicted over about the last `window` answers, the
    prediction being what an unstretched profile would have said at dispatch: so the estimate never
    feeds on itself and cannot oscillate, however many requests are under way.
    """

    LOWEST, HIGHEST = 0.5, 4.0

    def __init__(self, window: int = 40) -> None:
        """Starts at 1 (as the profile says); `window` is the number of answers that count."""
        self._window = window
        self._count = 0
        self._log = 0.0

    @property
    def slowness(self) -> float:
        """Factor on every time of the profile, LOWEST to HIGHEST."""
        return math.exp(self._log)

    def observe(self, taken_s: float, profile_s: float, *, finished: bool = True) -> None:
        """Learns from one request.

        Args:
            taken_s: time from dispatch to its end, seconds.
            profile_s: time predicted at dispatch by the profile itself, seconds.
            finished: False if it was cut off: then `taken_s` is a lower bound, which teaches only
                if it is above the present estimate.
        """
        if taken_s <= 0.0 or profile_s <= 0.0:
            return
        ratio = math.log(min(max(taken_s / profile_s, self.LOWEST), self.HIGHEST))
        if not finished and ratio < self._log:
            return
        # One answer alone says little, so the start at 1 counts as a few.
        self._count = min(self._count + 1, self._window)
        self._log += (ratio - self._log) / max(self._count, min(8, self._window))


class OutputLengthPredictor:
    """Mean output length per task, weighted to recent answers, capped by the request's limit."""

    def __init__(self, priors: dict[str, float], weight: float = 0.02) -> None:
        """Starts at `priors` (tokens per task); each answer moves the mean by `weight` (0 to 1)."""
        self._mean = dict(priors)
        self._weight = weight

    def predict(self, task: str, max_output_tokens: int) -> float:
        """Returns the predicted number of output tokens, at least 1."""
        return max(1.0, min(self._mean[task], float(max_output_tokens)))

    def observe(self, task: str, output_tokens: int) -> None:
        """Learns from one complete answer."""
        mean = self._mean[task]
        self._mean[task] = mean + self._weight * (output_tokens - mean)
