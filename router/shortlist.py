"""The shortlist: which candidates of a large fleet a network looks at.

Predictions and prices cost a few nanoseconds a candidate and are made for all; features and network
cost fifty times as much, and of a thousand devices most differ in nothing but how much worse than
the best they are. So above `LEAST_CANDIDATES` the network sees, of each tier, the candidates that
its prior likes best, those that the price it corrects likes best, and a few of the others at equal
distances, which speak in the pooled context for all that were left out. Smaller fleets are looked
at whole.

Kernels in the manner of `router.kernels`. Shape letters: C candidates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays

LEAST_CANDIDATES: Final = 64
"""Fleets of up to this many candidates are looked at whole."""
BEST: Final = 3
"""Candidates of a tier that are listed for their score, by each of the two scores."""
SAMPLES: Final = 6
"""Candidates of a tier that are listed for all others."""


class Shortlist(NamedTuple):
    """A shortlist and the working space to find it, float64 [C] each.

    Attributes:
        weight_C: how many candidates each listed one stands for; 0 = not listed.
        best_C: best scores so far, BEST of each tier.
        place_C: candidates of these scores; afterwards numbers of each tier.
    """

    weight_C: NDArray[np.float64]
    best_C: NDArray[np.float64]
    place_C: NDArray[np.float64]


def choose(
    fleet: FleetArrays,
    allowed_C: NDArray[np.bool_],
    prior_C: NDArray[np.float64],
    price_C: NDArray[np.float64],
    s: Shortlist,
) -> bool:
    """Makes the shortlist of a large fleet; returns False for a small one, which needs none.

    Args:
        fleet: candidates.
        allowed_C: candidates the request may go to; others are never listed.
        prior_C: the prior's scores.
        price_C: scores of the price that the network corrects.
        s: result.
    """
    count = len(fleet.tier_C)
    tiers = 0
    for c in range(count):
        tiers = max(tiers, fleet.tier_C[c] + 1)
        s.weight_C[c] = 0.0
    if count <= LEAST_CANDIDATES or count <= tiers * (2 * BEST + SAMPLES):
        return False
    _list_best(fleet, allowed_C, prior_C, tiers, s)
    _list_best(fleet, allowed_C, price_C, tiers, s)
    _list_samples(fleet, allowed_C, tiers, s)
    return True


def _list_best(
    fleet: FleetArrays,
    allowed_C: NDArray[np.bool_],
    score_C: NDArray[np.float64],
    tiers: int,
    s: Shortlist,
) -> None:
    """Lists the BEST candidates of each tier by a score, the first of equals."""
    for k in range(tiers * BEST):
        s.best_C[k] = -math.inf
        s.place_C[k] = -1.0
    for c in range(len(score_C)):
        last = fleet.tier_C[c] * BEST + BEST - 1
        if not score_C[c] > s.best_C[last] or not allowed_C[c]:
            continue
        k = last
        while k > last - BEST + 1 and score_C[c] > s.best_C[k - 1]:
            s.best_C[k] = s.best_C[k - 1]
            s.place_C[k] = s.place_C[k - 1]
            k -= 1
        s.best_C[k] = score_C[c]
        s.place_C[k] = c
    for k in range(tiers * BEST):
        if s.place_C[k] >= 0.0:
            s.weight_C[int(s.place_C[k])] = 1.0


def _list_samples(
    fleet: FleetArrays, allowed_C: NDArray[np.bool_], tiers: int, s: Shortlist
) -> None:
    """Lists SAMPLES of the allowed others of each tier, in the middle of as many equal stretches.

    Their weights add up to the number of others.
    """
    passed, following, taken = 0, tiers, 2 * tiers  # where `best_C` keeps these of each tier
    for t in range(tiers):
        s.place_C[t] = 0.0
        s.best_C[passed + t] = s.best_C[taken + t] = 0.0
    for c in range(len(allowed_C)):
        if allowed_C[c] and s.weight_C[c] <= 0.0:
            s.place_C[fleet.tier_C[c]] += 1.0
    for t in range(tiers):
        s.best_C[following + t] = _middle(0.0, s.place_C[t])
    for c in range(len(allowed_C)):
        if not allowed_C[c] or s.weight_C[c] > 0.0:
            continue
        t = fleet.tier_C[c]
        if s.best_C[passed + t] == s.best_C[following + t]:
            s.weight_C[c] = max(1.0, s.place_C[t] / SAMPLES)
            s.best_C[taken + t] += 1.0
            s.best_C[following + t] = _middle(s.best_C[taken + t], s.place_C[t])
        s.best_C[passed + t] += 1.0


def _middle(stretch: float, others: float) -> float:
    """Returns which of the others is in the middle of a stretch, all of them if they are few."""
    if others <= SAMPLES:
        return stretch
    return float(math.floor((stretch + 0.5) * others / SAMPLES))
