"""Estimators a router feeds: arrival rate and output length. The clock is the caller's."""

from __future__ import annotations

import math

from router import kernels


class RateEstimator:
    """Arrivals per second, exponentially weighted in time.

    Each arrival adds 1/tau, the sum decays with exp(-dt/tau): unbiased for a steady rate once the
    estimator has run for a few tau; before, it is divided by the weight seen so far.
    """

    def __init__(self, tau_s: float, now_s: float) -> None:
        """Starts empty at `now_s` (monotonic seconds) with time constant `tau_s` (> 0)."""
        self._tau_s = tau_s
        self._start_s = now_s
        self._last_s = now_s
        self._value = 0.0

    def observe(self, now_s: float, count: int = 1) -> None:
        """Counts `count` arrivals at `now_s`."""
        self._decay(now_s)
        self._value += count / self._tau_s

    def rate_rps(self, now_s: float) -> float:
        """Returns the estimate, requests per second."""
        self._decay(now_s)
        age_s = self._last_s - self._start_s
        # The floor of a tenth of tau keeps the first arrivals from reading as an infinite rate.
        weight = 1.0 - math.exp(-max(age_s, 0.1 * self._tau_s) / self._tau_s)
        return self._value / weight

    def _decay(self, now_s: float) -> None:
        self._value = kernels.decayed(self._value, now_s - self._last_s, self._tau_s)
        self._last_s = max(self._last_s, now_s)


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
