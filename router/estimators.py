"""Estimators a router feeds: how slow a device is, how long answers are."""

from __future__ import annotations

import math

from router.traffic import moved


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
    """Mean output length per task, weighted to recent answers, capped by the request's limit.

    Lengths that clients only claim move it by at most `MOST_CLAIMED` times in all, each by at most
    the weight of one value (2 %), and every answer that was seen draws it back by as much.

    An answer that its own limit ended would have been longer, nobody knows by how much. One that is
    shorter than the mean teaches nothing: else requests with low limits would read as short answers
    of the task, and those without would be predicted to be so.
    """

    MOST_CLAIMED = 2.0

    def __init__(self, priors: dict[str, float]) -> None:
        """Starts at `priors`, tokens per task."""
        self._mean = dict(priors)
        self._claimed = dict.fromkeys(priors, 1.0)

    def add(self, priors: dict[str, float]) -> None:
        """Takes in tasks that are new; what was learned of the others stays."""
        self._mean = priors | self._mean
        self._claimed = dict.fromkeys(priors, 1.0) | self._claimed

    def predict(self, task: str, max_output_tokens: int) -> float:
        """Returns the predicted number of output tokens, a whole one and at least 1."""
        mean = self._mean[task] * self._claimed[task]
        return float(max(1, min(int(mean + 0.5), max_output_tokens)))

    def observe(self, task: str, output_tokens: int, limit: float = math.inf) -> None:
        """Learns from one complete answer, `limit` being the most tokens it might have had."""
        if limit <= output_tokens < self._mean[task]:
            return
        self._mean[task] = moved(self._mean[task], output_tokens)
        self._claimed[task] = moved(self._claimed[task], 1.0)

    def observe_claim(self, task: str, output_tokens: int, limit: float = math.inf) -> None:
        """Learns from an answer that a client says it had."""
        if limit <= output_tokens < self._mean[task]:
            return
        ratio = output_tokens / self._mean[task]
        ratio = min(max(ratio, 1.0 / self.MOST_CLAIMED), self.MOST_CLAIMED)
        self._claimed[task] = moved(self._claimed[task], ratio)
