"""How far a latency profile is off, learned from what a router predicted and what then came.

A profile is measured once and ages unseen. A router sees it age: at each decision it predicts a
time from the profile, and some moments later it knows the time. The ratio of the two, by tier, by
how busy the device was and by the prompt's length, says where the profile is off. On an idle device
the profile alone makes the prediction; on a busy one it is also the crowd that comes afterwards,
which is ten per cent either way on any day (ADR 11).

Nothing here changes a decision: it is for those who measure again (ADR 29). What devices are slower
by at present, decisions correct by themselves (`router.estimators`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays

MEMORY_S = 600.0
"""Time after which an answer counts 1/e."""
FEWEST = 20.0
"""Answers, as far as they still count, from which on an error is told: a few tell little."""
MOST_ERROR = 0.2
"""Error from which on a profile should be measured again, and above which one is refused."""
LARGEST_RATIO = 4.0
"""Ratio of the two times as which one answer counts at most: one straggler must not decide."""
LOADS = ("idle device", "device under half full", "device half full or more")
"""Ranges of load at the decision: nothing under way, then by `fill`."""
HALF = 0.5
LENGTHS = (64, 512)
"""Most prompt tokens of the ranges of length but the last, which has no end."""
RANGE_COUNT = len(LOADS) * (len(LENGTHS) + 1)


class RangeError(NamedTuple):
    """How far a profile is off for one tier in one range.

    Attributes:
        tier: name of the tier.
        range: what the answers had in common, in words; empty = all of them.
        error: predicted / observed - 1, geometric mean.
        answers: answers behind it, as far as they still count.
    """

    tier: str
    range: str
    error: float
    answers: float


@dataclass(slots=True)
class Compared:
    """What is known of one tier in one range.

    Attributes:
        count: answers, each decaying by 1/e per MEMORY_S.
        log_sum: sum of log(observed / predicted) of these.
        at_s: when the above held, seconds.
    """

    count: float = 0.0
    log_sum: float = 0.0
    at_s: float = 0.0

    def add(self, now_s: float, observed_s: float, predicted_s: float, *, finished: bool) -> None:
        """Learns from one request.

        One that was cut off took longer than it was given. Where that is less than the mean it
        teaches nothing: else hopeless requests would read as quick answers.

        Args:
            now_s: when it ended, seconds.
            observed_s: time from dispatch to its end, seconds; not above 0 teaches nothing.
            predicted_s: the same as the profile predicts it, seconds; likewise.
            finished: False if it was cut off.
        """
        if not observed_s > 0.0 or not predicted_s > 0.0:
            return
        ratio = min(max(observed_s / predicted_s, 1.0 / LARGEST_RATIO), LARGEST_RATIO)
        log = math.log(ratio)
        if not finished and log < (self.log_sum / self.count if self.count else 0.0):
            return
        kept = self._kept(now_s)
        self.count = self.count * kept + 1.0
        self.log_sum = self.log_sum * kept + log
        self.at_s = max(self.at_s, now_s)

    def counted(self, now_s: float) -> tuple[float, float]:
        """Returns count and sum as of now."""
        kept = self._kept(now_s)
        return self.count * kept, self.log_sum * kept

    def _kept(self, now_s: float) -> float:
        return math.exp(-max(0.0, now_s - self.at_s) / MEMORY_S)


def range_of(fill: float, prompt_tokens: float) -> int:
    """Returns the number of the range of a request, from 0 to RANGE_COUNT - 1.

    Args:
        fill: requests under way on the device at the decision over the batch limits of their tiers,
            added up over its tiers; 0 = idle.
        prompt_tokens: of the request.
    """
    load = 0 if fill <= 0.0 else (1 if fill < HALF else 2)
    length = 0
    while length < len(LENGTHS) and prompt_tokens > LENGTHS[length]:
        length += 1
    return load * (len(LENGTHS) + 1) + length


def device_fill(
    fleet: FleetArrays,
    c: int,
    own_in_flight_C: NDArray[np.float64],
    other_in_flight_C: NDArray[np.float64],
) -> float:
    """Returns how full a candidate's device is: requests over batch limits, added up over tiers."""
    fill = 0.0
    # Plain numbers: those of numpy take three times as long, and every answer asks.
    for j in fleet.peers_CP[c].tolist():
        if j < 0:
            break
        in_flight: float = own_in_flight_C.item(j) + other_in_flight_C.item(j)
        if in_flight > 0.0:
            fill += in_flight / fleet.max_batch_C.item(j)
    return fill


def range_text(number: int) -> str:
    """Returns a range in words."""
    load, length = divmod(number, len(LENGTHS) + 1)
    if length == len(LENGTHS):
        return f"{LOADS[load]}, prompts above {LENGTHS[-1]} tokens"
    low = LENGTHS[length - 1] if length else 0
    return f"{LOADS[load]}, prompts of {low + 1} to {LENGTHS[length]} tokens"


def actual_length_s(
    predicted_s: float, fixed_s: float, expected_tokens: float, output_tokens: float
) -> float:
    """Returns a prediction as it would have been for the answer's actual length, seconds.

    Whoever predicts does not know how long an answer gets, and that is not the profile's fault: all
    but the fixed part of the time is in proportion to the tokens.

    Args:
        predicted_s: the prediction, seconds.
        fixed_s: its part that does not depend on the answer's length: overhead and prompt, seconds.
        expected_tokens: output tokens that it was made for, above 0.
        output_tokens: those that came; 0 = unknown, the prediction stays as it is.
    """
    if not output_tokens > 0.0:
        return predicted_s
    fixed_s = min(fixed_s, predicted_s)
    return fixed_s + (predicted_s - fixed_s) * output_tokens / expected_tokens


def errors_of(tier: str, ranges: Mapping[int, Compared], now_s: float) -> list[RangeError]:
    """Returns how far a tier's predictions are off: over all answers, then by range.

    Nothing is told of what has fewer than FEWEST answers.
    """
    counted = {number: each.counted(now_s) for number, each in sorted(ranges.items())}
    everything = tuple(map(sum, zip(*counted.values(), strict=True))) or (0.0, 0.0)
    found = [("", everything), *((range_text(number), each) for number, each in counted.items())]
    return [
        RangeError(tier, text, math.exp(-log_sum / count) - 1.0, count)
        for text, (count, log_sum) in found
        if count >= FEWEST
    ]


def farthest(errors: Iterable[RangeError]) -> RangeError | None:
    """Returns what is farthest off, as a ratio; None if nothing is known."""
    return max(errors, key=lambda each: abs(math.log1p(each.error)), default=None)


def briefest(errors: Sequence[RangeError]) -> tuple[RangeError, ...]:
    """Returns of each tier what holds for all answers, and the range that is farthest off."""
    found = []
    for tier in dict.fromkeys(each.tier for each in errors):
        mine = [each for each in errors if each.tier == tier]
        found += [each for each in mine if not each.range]
        worst = farthest(each for each in mine if each.range)
        found += [] if worst is None else [worst]
    return tuple(found)


def off_beyond(errors: Sequence[RangeError], most_error: float) -> list[RangeError]:
    """Returns what is off by more than a limit, the farthest first."""
    found = [each for each in errors if abs(each.error) > most_error]
    return sorted(found, key=lambda each: -abs(math.log1p(each.error)))
