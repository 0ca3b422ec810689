"""A test that may be looked at at any time: is one policy better, is it worse, or cannot we tell?

Requests are drawn by chance, with equal odds, for the policy on trial or for the one in force; the
difference between what both earn is the effect. Each request gives one number, its value less what
was expected of either, twice, with a minus sign for the policy in force. Its mean is the effect,
whatever the traffic does meanwhile, for the draw does not depend on the request. Of these numbers
only count, sum and sum of squares are kept, so what several processes saw is added up.

The bounds hold at all times together: with probability 1 - alpha they are never wrong, however
often they are looked at and whenever one stops. For Z at least -c with mean d given what came
before, and 0 <= x < 1 / c,

    exp(x (sum Z - sum d) - psi(x) sum Z^2),  psi(x) = (-log(1 - c x) - c x) / c^2

is a nonnegative supermartingale (Fan, Grama and Liu 2015, lemma 4.1; Howard, Ramdas, McAuliffe and
Sekhon 2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", theorem 4, here with
0 as what is predicted of Z, and section 4.2 for effects of drawn treatments). So is any mixture
over x, and by Ville's inequality it ever reaches 1 / a with probability a at most. No distribution
is assumed, and neither is that it stays the same.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_POINTS = 14
"""Points of the mixture, each half the one before: from effects that show in some ten requests to
those that take a hundred million."""
_FIRST = 0.9
"""The largest of them, as a share of the largest there may be."""
_SIGNED_POINTS = 14
"""Points of the mixture over differences of pairs: each twice the one before, from 1 on."""
_STEPS = 60
"""Halvings in the search for a bound."""


class Effect(NamedTuple):
    """What is kept of the requests of both policies.

    Attributes:
        drawn: requests of both.
        total: sum of their numbers.
        square: sum of the squares.
    """

    drawn: float = 0.0
    total: float = 0.0
    square: float = 0.0

    def plus(self, other: Effect) -> Effect:
        """Returns what both hold together."""
        return Effect(
            self.drawn + other.drawn, self.total + other.total, self.square + other.square
        )


class Bounds(NamedTuple):
    """An effect and how well it is known.

    Attributes:
        low: it is above this.
        mean: what was seen.
        high: it is below this.
    """

    low: float
    mean: float
    high: float


class Judgement(enum.Enum):
    """What a test says."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot_tell"
    GO_ON = "go_on"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a test promises, stated before it begins.

    Attributes:
        alpha: probability with which a policy that is neither better nor worse is ever called
            either, 0 to 1.
        smallest: an effect as large as this is found, with probability 1 - alpha, before the test
            gives up; above 0, in the unit of the values.
        reach: the values' range, largest less smallest, above 0.
    """

    alpha: float
    smallest: float
    reach: float

    def judge(self, effect: Effect) -> Judgement:
        """Returns what is known of an effect.

        It gives up once a smaller one than stated is all there can be.
        """
        bounds = bounds_of(effect, self.alpha, self.reach)
        if bounds.low > 0.0:
            return Judgement.BETTER
        if bounds.high < 0.0:
            return Judgement.WORSE
        # An effect of `smallest` lies at most half a width from the middle, so 0 would be outside.
        if bounds.high - bounds.low <= self.smallest:
            return Judgement.CANNOT_TELL
        return Judgement.GO_ON


class Arms:
    """What one process sees of both policies, one request after the other.

    Attributes:
        effect: the sums.
    """

    def __init__(self, low: float, high: float) -> None:
        """Takes the range of the values; what is outside counts as its end."""
        self._low, self._high = low, high
        self._count, self._mean = 0, 0.5 * (low + high)
        self.effect = Effect()

    def add(self, is_on_trial: bool, value: float) -> None:
        """Takes in a request's value, drawn with equal odds; what is no number is the worst."""
        value = min(self._high, max(self._low, value)) if value == value else self._low
        number = 2.0 * (value - self._mean)
        if not is_on_trial:
            number = -number
        self.effect = self.effect.plus(Effect(1.0, number, number * number))
        # The mean of those before, and never of this one: else the sums would promise nothing.
        self._count += 1
        self._mean += (value - self._mean) / self._count


def judge_pairs(differences: Sequence[float], alpha: float) -> Judgement:
    """Returns what differences show of which a coin told which side comes first.

    Periods of a switchback come in pairs, the policy on trial in one and the one in force in the
    other, and a fair coin that nobody knew before says which is which. Where the policies are
    equal, the coin gives each difference d its sign, and for every x

        prod exp(x d) / cosh(x d)

    is a nonnegative martingale (Efron 1969, "Student's t-test under symmetry conditions"; de la
    Pena, Klass and Lai 2004, "Self-normalized processes"), and so is a mixture of them. Ville's
    inequality does the rest, as above. Nothing is assumed of how large differences are, or
    whether periods are alike. It takes six to eight pairs that agree, however large the effect.

    Args:
        differences: policy on trial less policy in force, one for each pair, between -1 and 1.
        alpha: chance that equal policies are ever called better or worse.

    Returns:
        BETTER, WORSE or GO_ON.
    """
    log_limit = -math.log(0.5 * alpha)
    if _log_signed(differences, 1.0) >= log_limit:
        return Judgement.BETTER
    return Judgement.WORSE if _log_signed(differences, -1.0) >= log_limit else Judgement.GO_ON


def smallest_shown(differences: Sequence[float], alpha: float) -> float:
    """Returns the mean difference that as many pairs of such spread would show, about.

    By exp(x^2 d^2 / 2), which is above cosh(x d), at the best x: sum d = sqrt(2 log(1/a) sum d^2).
    """
    count = len(differences)
    if not count:
        return math.inf
    log_limit = math.log(2.0 * _SIGNED_POINTS / alpha)
    return math.sqrt(2.0 * log_limit * math.fsum(d * d for d in differences)) / count


def _log_signed(differences: Sequence[float], sign: float) -> float:
    """Returns the logarithm of the mixed martingale; it rises with differences of the sign."""
    logs: list[float] = []
    for point in range(_SIGNED_POINTS):
        x = sign * 2.0**point
        # log cosh(u) = |u| + log((1 + exp(-2 |u|)) / 2)
        logs.append(
            math.fsum(
                x * d - abs(x * d) - math.log1p(math.exp(-2.0 * abs(x * d))) + math.log(2.0)
                for d in differences
            )
        )
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / _SIGNED_POINTS)


def bounds_of(effect: Effect, alpha: float, reach: float) -> Bounds:
    """Returns between what an effect lies, with probability 1 - alpha at all times together.

    Args:
        effect: what was seen.
        alpha: half of it for either side.
        reach: range of the values, which is also as large as an effect can be.
    """
    if effect.drawn <= 0.0:
        return Bounds(-reach, 0.0, reach)
    mean = effect.total / effect.drawn
    width = boundary(effect.square, 0.5 * alpha, 2.0 * reach) / effect.drawn
    return Bounds(max(-reach, mean - width), mean, min(reach, mean + width))


def boundary(square: float, alpha: float, largest: float) -> float:
    """Returns what a sum exceeds its mean by, at any time, with probability `alpha` at most.

    Args:
        square: sum of the squares of the numbers in it.
        alpha: above 0, below 1.
        largest: none of the numbers is further from 0.
    """
    if not (math.isfinite(square) and 0.0 < alpha < 1.0):
        return math.inf
    log_limit = -math.log(alpha)
    low, high = 0.0, largest
    while _log_mixture(high, square, largest) < log_limit:
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if _log_mixture(middle, square, largest) < log_limit:
            low = middle
        else:
            high = middle
    return high


def is_above(total: float, square: float, alpha: float, largest: float) -> bool:
    """Returns whether numbers with a sum of `total` surely have a mean above 0; see `boundary`."""
    if not (math.isfinite(square) and total > 0.0):
        return False
    return _log_mixture(total, square, largest) >= -math.log(alpha)


def _log_mixture(total: float, square: float, largest: float) -> float:
    """Returns the logarithm of the mixed supermartingale; it rises with `total`."""
    logs = [x * total - p * square for x, p in _mixture(largest)]
    top = max(logs)
    return top + math.log(sum(math.exp(each - top) for each in logs) / _POINTS)


def _mixture(largest: float) -> list[tuple[float, float]]:
    """Returns the points x of the mixture, and psi(x) of each."""
    points: list[tuple[float, float]] = []
    share = _FIRST
    for _ in range(_POINTS):
        points.append((share / largest, (-math.log1p(-share) - share) / (largest * largest)))
        share *= 0.5
    return points
