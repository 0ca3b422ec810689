"""How a target is held: a pressure on the price of device time, moved by what is missed.

Users think in targets: "99 % in time, as good as possible beyond that". As a constraint of an
optimum a target has a dual, a price that rises while the constraint is broken and falls while it is
kept; what a large tier takes from the others is charged by it. Each router keeps one for each task.
It is moved by dual ascent: a miss raises it by GAIN / (ends per deadline), time lets it fall by
GAIN x (1 - target) x (the task's share of the ends) per deadline. So where it stays put, the share
missed is 1 - target. All tasks share the devices, so the pressure is the sum over tasks: the
logarithm of the factor on what device time costs. It rises fast, by what was missed and by what is
about to be (a choice predicted to be late, a rescue), and falls slowly, the slower the stricter the
target: from its height to nothing in twenty deadlines at 0.99, in two hundred at 0.999. A burst
that comes back before finds free devices.

From FLOOR on price no longer decides: the smallest allowed tier is taken, wherever the policy likes
it best. So a mesh that fails its target does what always-small would do until that is over. A
router in its first deadline, half a second at most, does so too: it knows nothing of the traffic.

Only policies with a price feel the pressure (`table.Entry.has_price`). Kernels in the manner of
`router.kernels`, used by the live services and compiled by the simulator.

Shape letters: C candidates, K tasks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from router.safety import LEAST_ENDS, SHORTEST_WINDOW_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.policies.scores import Scratch

GAIN = 20.0
"""Rise of the pressure per deadline and share missed."""
LEAST_SHARE = 0.25
"""Share of an even one by which a task's pressure falls at least, for it may never come again."""
HIGHEST = 4.0
"""Limit of the pressure: how long calm must last before price decides again."""
FLOOR = 3.0
"""Pressure from which the smallest tier alone is taken; device time costs 20 times as much."""
LONGEST_COLD_S = 0.5
"""A router knows its traffic after so long at the latest, however long deadlines are."""
RESCUED = 0.5
"""What a rescue counts of a miss: it was about to be one."""
LATE_AHEAD = 1.0
"""What a choice that is predicted to be late counts of a miss."""

_APART = 1e6
"""Distance between the scores of two tiers where the smaller one must win."""


class Pressures(NamedTuple):
    """What one router has learned; kernels change it in place.

    Attributes:
        pressure_K: of each task, 0 or more; their sum is HIGHEST at most.
        ends_K: recent ends of each task, decaying by 1/e per deadline.
        at_s_1: when the above held, seconds: one number.
    """

    pressure_K: NDArray[np.float64]
    ends_K: NDArray[np.float64]
    at_s_1: NDArray[np.float64]


def total(values_K: NDArray[np.float64]) -> float:
    """Returns the sum over tasks: the pressure that requests feel, or all recent ends."""
    found = 0.0
    for k in range(len(values_K)):
        found += values_K[k]
    return found


def felt(p: Pressures, now_s: float, window_s: float, target_K: NDArray[np.float64]) -> float:
    """Returns the pressure that a request feels at present; see `relax`."""
    found = total(p.pressure_K)
    if found > 0.0:
        relax(p, now_s, window_s, target_K)
        found = total(p.pressure_K)
    return found


def relax(p: Pressures, now_s: float, window_s: float, target_K: NDArray[np.float64]) -> None:
    """Brings pressures to the present.

    Args:
        p: of a router, changed in place.
        now_s: the present, seconds; a time before that of `p` changes nothing.
        window_s: deadline of the request at hand, as time from its arrival, seconds.
        target_K: share of each task's requests that is to be in time.
    """
    elapsed_s = now_s - p.at_s_1[0]
    if elapsed_s <= 0.0:
        return
    p.at_s_1[0] = now_s
    deadlines = elapsed_s / max(window_s, SHORTEST_WINDOW_S)
    count = len(p.ends_K)
    if total(p.pressure_K) > 0.0:  # else there is nothing to fall, as for most requests
        ends = total(p.ends_K)
        for k in range(count):
            share = LEAST_SHARE / count
            if ends > 0.0:
                share = max(share, p.ends_K[k] / ends)
            fall = GAIN * (1.0 - target_K[k]) * share * deadlines
            p.pressure_K[k] = max(0.0, p.pressure_K[k] - fall)
    kept = math.exp(-deadlines)
    for k in range(count):
        p.ends_K[k] *= kept


def learn(
    p: Pressures,
    now_s: float,
    window_s: float,
    target_K: NDArray[np.float64],
    task: int,
    ended: float,
    missed: float,
    highest: float,
) -> None:
    """Learns from an end, or from what foretells one; a target of 0 teaches nothing.

    Args:
        p: of a router, changed in place.
        now_s: when it came, seconds.
        window_s: deadline of the request, as time from its arrival, seconds.
        target_K: share of each task's requests that is to be in time.
        task: of the request.
        ended: 1 for an end, 0 for what foretells one.
        missed: what it counts of a miss, 0 to 1.
        highest: pressure up to which this may raise all together: HIGHEST, or less.
    """
    if not target_K[task] > 0.0:
        return
    relax(p, now_s, window_s, target_K)
    p.ends_K[task] += ended
    if missed > 0.0:
        rise(p, task, step(p, missed), highest)


def step(p: Pressures, missed: float) -> float:
    """Returns by how much a miss raises the pressure where there is room, 0 or more."""
    return GAIN * missed / max(total(p.ends_K), LEAST_ENDS)


def rise(p: Pressures, task: int, by: float, highest: float) -> None:
    """Raises a task's pressure, that of all together to `highest` at most."""
    p.pressure_K[task] += min(by, max(0.0, highest - total(p.pressure_K)))


def is_floored(pressure: float) -> bool:
    """Returns whether there is no smaller tier left to step down to: then admission helps."""
    return pressure >= FLOOR


def is_small(pressure: float, age_s: float, window_s: float) -> bool:
    """Returns whether a request goes to the smallest tier, whatever the price says.

    Args:
        pressure: the present one.
        age_s: time since the router began to serve, seconds.
        window_s: deadline of the request, as time from its arrival, seconds.
    """
    return is_floored(pressure) or age_s < min(window_s, LONGEST_COLD_S)


def take_small(fleet: FleetArrays, allowed_C: NDArray[np.bool_], s: Scratch) -> None:
    """Leaves scores inside the smallest allowed tier as they are, and puts all others below."""
    smallest = -1
    for c in range(len(fleet.tier_C)):
        if allowed_C[c] and (smallest < 0 or fleet.tier_C[c] < smallest):
            smallest = fleet.tier_C[c]
    for c in range(len(fleet.tier_C)):
        if fleet.tier_C[c] > smallest:
            s.score_C[c] -= _APART * (fleet.tier_C[c] - smallest)
