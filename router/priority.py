"""What a priority class is worth: a price of device time, a caution at admission, an owed share.

Each class has a place: high -1, normal 0, low 1. What counts of it is how far it is from the mean
place of the requests that the router got lately: a class means something only beside the others. So
a mesh that gets one class alone, whichever it is, does as if there were none, and nobody gains by
calling everything high.

- Device time costs a request exp(PRICE x distance) times as much. So the low class steps down to
  smaller tiers first. The mean of the price's logarithm over all requests stays what it was, so
  together they take about as much as before. Policies without a price do not feel this part.
- Admission counts predicted latencies exp(CAUTION x distance) times, beside its own factor. So in
  overload the low class is refused first: what it leaves free keeps the others in time.
- Of each class at least OWED times the share of all requests is admitted. The nearer a class comes
  to that the less is held against it; below, it is admitted as the high one is. So no class is
  starved.

All of it is counted in requests, not in seconds: MEMORY of them is how far back a router looks. All
shares are of requests with hard deadlines, since no others are refused.

Kernels in the manner of `router.kernels`, used by the live services and compiled by the simulator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PRICE = 0.7
"""Logarithm of the factor on the price of device time from one class to the next: about 2."""
CAUTION = 0.07
"""Logarithm of the factor on predictions at admission from one class to the next."""
OWED = 0.5
"""Part of the share admitted of all requests that is admitted of each class at least."""
MEMORY = 100.0
"""Requests over which means are taken: the weight of one falls by 1/e in so many."""
FADED = 1e-17
"""Share below which it is none: 1 less that is 1 in double precision."""
NEAR = 1e-9
"""Distance of a class to the mean place that is none: some two thousand requests of it alone."""
HIGH, LOW = -1, 1
"""Places of the outer classes; that of normal is 0."""


@dataclass(slots=True)
class Classes:
    """What one router knows of the classes it was asked for lately.

    Kernels change it in place. The simulator keeps the same fields in a record per router.

    Attributes:
        mean_place: mean place of recent requests, -1 to 1.
        refused: share of recent hard requests that admission refused, 0 to 1.
        refused_high: the same of those of the high class.
        refused_normal: of the normal one.
        refused_low: of the low one.
    """

    mean_place: float = 0.0
    refused: float = 0.0
    refused_high: float = 0.0
    refused_normal: float = 0.0
    refused_low: float = 0.0


def arrive(classes: Classes, place: int) -> None:
    """Counts a request of a class, once, before anything is asked of it."""
    classes.mean_place += (place - classes.mean_place) / MEMORY
    if abs(place - classes.mean_place) < NEAR:
        classes.mean_place = float(place)


def log_price(classes: Classes, place: int) -> float:
    """Returns the logarithm of the factor on the price of device time; 0 if all are of a class."""
    return PRICE * (place - classes.mean_place)


def is_alone(classes: Classes, place: int) -> bool:
    """Returns whether a class is, as far as counts tell, the only one: then it means nothing.

    Then another request of it changes no mean place, both logarithms below are exactly 0, and it is
    owed nothing.
    """
    return place == classes.mean_place and refused_share(classes, place) == classes.refused


def refused_share(classes: Classes, place: int) -> float:
    """Returns the share of a class's recent requests that admission refused."""
    if place < 0:
        return classes.refused_high
    if place > 0:
        return classes.refused_low
    return classes.refused_normal


def admitted_ratio(classes: Classes, place: int) -> float:
    """Returns the share admitted of a class lately over that of all requests.

    Exactly 1 where all requests are of the class, also if nearly all are refused.
    """
    admitted = 1.0 - classes.refused
    if not admitted > 0.0:
        return 1.0
    return (1.0 - refused_share(classes, place)) / admitted


def is_owed(classes: Classes, place: int) -> bool:
    """Returns whether too few of a class were admitted lately."""
    return admitted_ratio(classes, place) < OWED


def log_caution(classes: Classes, place: int) -> float:
    """Returns the logarithm of the factor on predictions at admission, beside admission's own.

    It falls to nothing as the class comes down to what it is owed. So it settles where the class
    gets a little more than that, and among its requests those with long predictions are refused,
    which take most. A class that is owed more is counted as the high one.
    """
    ratio = admitted_ratio(classes, place)
    distance = place - classes.mean_place
    if ratio < OWED:
        distance = HIGH - classes.mean_place
    elif distance > 0.0:
        distance *= min(1.0, (ratio - OWED) / (1.0 - OWED))
    return CAUTION * distance


def learn(classes: Classes, place: int, refused: bool) -> None:
    """Learns what admission made of a request with a hard deadline."""
    value = 1.0 if refused else 0.0
    classes.refused = _moved(classes.refused, value)
    if place < 0:
        classes.refused_high = _moved(classes.refused_high, value)
    elif place > 0:
        classes.refused_low = _moved(classes.refused_low, value)
    else:
        classes.refused_normal = _moved(classes.refused_normal, value)


def _moved(share: float, value: float) -> float:
    """Returns a share after one more value.

    What no longer changes 1 - share is nothing: numbers that fade without end become so small that
    processors take many times as long for them.
    """
    share += (value - share) / MEMORY
    return share if share > FADED else 0.0


def factor(log: float) -> float:
    """Returns a factor of its logarithm; exactly 1 of 0."""
    return math.exp(log)
