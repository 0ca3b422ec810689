"""The scheduled price: a price whose parameters, and whose placement of tiers, follow the load.

`price` has one set of parameters for every load, and treats all devices alike. Both cost quality.
What suits a light load does not suit a heavy one; and a tier whose requests are spread thinly over
all devices pays for its steps on each of them, with few sequences to share them. So here every
parameter is a table over the ladder load (gain scheduling), linear between its knots, and the tiers
take up *bands* of devices: the smallest tier the first share of them, the next one the share after
it, and so on. A candidate whose device lies outside its tier's band pays a penalty; devices that
two bands share serve both. Every router counts devices in the same order, so all agree on the bands
without a word.

The table is found by policy search in the simulator
(`trainer/learning/offline/price_search.py`) and travels with a
snapshot. Its layout, after the parameters of the price that the snapshot corrects:

    knots, boundaries, first load, step, then per knot: level, backlog, step_share, foresight,
    on_time_bias, on_time_sharpness, band_penalty, boundary_1 ... boundary_J

Boundary j is the share of devices (ordered by their first candidate) that the j smallest tiers
take up. A ladder of another length reads the boundaries at its own relative positions.

Shape letters: C candidates, P parameters, J boundaries = tiers - 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from router import kernels, slowdown
from router.policies import price, scores
from router.types import is_finite_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from router.fleet import FleetArrays
    from router.ledger import LoadArrays
    from router.policies.scores import Capacity, Query, Scratch

PRICE_COUNT = len(price.PARAMETERS)
"""Parameters of the price, which come first."""
HEADER = 4
VALUES = (
    "level",
    "backlog",
    "step_share",
    "foresight",
    "on_time_bias",
    "on_time_sharpness",
    "band_penalty",
)
"""Values of a knot before its boundaries."""
VALUE_COUNT = len(VALUES)
LEVEL, BACKLOG, STEP_SHARE, FORESIGHT, ON_TIME_BIAS, ON_TIME_SHARPNESS, BAND_PENALTY = range(7)
"""Their columns."""
MOST_KNOTS = 100
LARGEST = 1e3
"""Limits of a table that is read from a file."""


STEADY = 0.1
"""Differences in ladder load that the short rate's own noise makes, about: at 100 req/s its
standard deviation is 0.06 on a ladder of 15 to 1."""


def schedule_load(can: Capacity, query: Query) -> float:
    """Returns the ladder load the table is read at: the long rate's, unless the short one left it.

    A tier's band must not wander with the noise of the short rate, or its batches never gather. But
    when traffic really changes only the short rate knows. Between one and two times `STEADY` the
    reading goes over from the long rate to the short one.
    """
    short = scores.ladder_load(can, query.rate_short_rps)
    if not query.rate_long_rps > 0.0:
        return short
    steady = scores.ladder_load(can, query.rate_long_rps)
    apart = short - steady
    share = max(0.0, min(1.0, abs(apart) / STEADY - 1.0))
    return steady + share * apart


class ScheduleError(ValueError):
    """A table is not one; the message names what is wrong."""


def table_of(params_P: NDArray[np.float64]) -> dict[str, Any]:
    """Returns the table as JSON values for a snapshot; empty if there is none."""
    if not has_schedule(params_P):
        return {}
    knots = int(params_P[PRICE_COUNT])
    first, step = (float(x) for x in params_P[PRICE_COUNT + 2 : PRICE_COUNT + HEADER])
    width = VALUE_COUNT + int(params_P[PRICE_COUNT + 1])
    values = [float(x) for x in params_P[PRICE_COUNT + HEADER :]]
    rows = [values[k * width : (k + 1) * width] for k in range(knots)]
    return {"columns": list(VALUES), "first_load": first, "step": step, "rows": rows}


def parameters_of(table: Mapping[str, Any]) -> list[float]:
    """Returns the parameters that follow those of the price; nothing for an empty table.

    Raises:
        ScheduleError: something is missing, not finite, or out of range.
    """
    if not table:
        return []
    rows, first, step = table.get("rows"), table.get("first_load"), table.get("step")
    if table.get("columns") != list(VALUES):
        raise ScheduleError(f"schedule.columns must be {', '.join(VALUES)}")
    if not is_finite_number(first) or not is_finite_number(step) or not step > 0.0:
        raise ScheduleError("schedule.first_load and schedule.step must be numbers, step above 0")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_KNOTS:
        raise ScheduleError(f"schedule.rows must be a list of 1 to {MOST_KNOTS} rows")
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width or width <= VALUE_COUNT:
            raise ScheduleError(
                f"schedule.rows[{index}] must hold {VALUE_COUNT} values and one boundary or more, "
                "as many as the others"
            )
        if not all(is_finite_number(value) and abs(value) <= LARGEST for value in row):
            raise ScheduleError(f"schedule.rows[{index}]: values must be within +-{LARGEST:g}")
    header = [float(len(rows)), float(width - VALUE_COUNT), float(first), float(step)]
    return [*header, *(float(value) for row in rows for value in row)]


def has_schedule(params_P: NDArray[np.float64]) -> bool:
    """Returns whether a table follows the parameters of the price."""
    return len(params_P) > PRICE_COUNT + HEADER


def scheduled(params_P: NDArray[np.float64], load: float, column: int) -> float:
    """Returns a column of the table at a ladder load; its ends go on as they are."""
    knots = int(params_P[PRICE_COUNT])
    width = VALUE_COUNT + int(params_P[PRICE_COUNT + 1])
    position = (load - params_P[PRICE_COUNT + 2]) / params_P[PRICE_COUNT + 3]
    position = max(0.0, min(knots - 1.0, position))
    knot = min(int(position), max(0, knots - 2))
    share = position - knot
    start = PRICE_COUNT + HEADER + knot * width + column
    after = start + width if knot + 1 < knots else start
    return float((1.0 - share) * params_P[start] + share * params_P[after])


def boundary(params_P: NDArray[np.float64], load: float, tier: float, tiers: float) -> float:
    """Returns the share of devices that tiers below `tier` take up; 0 for the first tier."""
    if tier <= 0.0:
        return 0.0
    if tier >= tiers:
        return 1.0
    boundaries = int(params_P[PRICE_COUNT + 1])
    position = 0.0
    if tiers > 2.0:
        position = (tier - 1.0) / (tiers - 2.0) * (boundaries - 1.0)
    below = min(int(position), boundaries - 1)
    above = min(below + 1, boundaries - 1)
    share = position - below
    low = scheduled(params_P, load, VALUE_COUNT + below)
    high = scheduled(params_P, load, VALUE_COUNT + above)
    return max(0.0, min(1.0, (1.0 - share) * low + share * high))


def is_mixed(fleet: FleetArrays, c: int, small: int, large: int) -> bool:
    """Returns whether the device of `c` serves both ends of the ladder: bands are of these alone.

    Where tiers have devices of their own the placement has been decided already.
    """
    has_small = False
    has_large = False
    for j in fleet.peers_CP[c]:
        if j < 0:
            break
        if fleet.availability_C[j] <= 0.0:
            continue
        if fleet.tier_C[j] == fleet.tier_C[small]:
            has_small = True
        if fleet.tier_C[j] == fleet.tier_C[large]:
            has_large = True
    return has_small and has_large


def band_distance(
    fleet: FleetArrays, params_P: NDArray[np.float64], load: float, out_C: NDArray[np.float64]
) -> None:
    """Computes how far each candidate's device is outside its tier's band, 0 to 1, into `out_C`.

    1 where the device and the band share nothing; 0 where they share a quarter of a device or more,
    so that a band that only just reaches a device opens it by degrees.
    """
    small = scores.extreme_candidate(fleet, False)
    large = scores.extreme_candidate(fleet, True)
    # First the rank of each candidate's device among the mixed ones, then tier by tier.
    for c in range(len(fleet.tier_C)):
        out_C[c] = -1.0
    devices = 0
    for c in range(len(fleet.tier_C)):
        if not kernels.is_first_usable(fleet, c) or not is_mixed(fleet, c, small, large):
            continue
        for j in fleet.peers_CP[c]:
            if j < 0:
                break
            out_C[j] = devices
        devices += 1
    lowest = fleet.tier_C[small]
    tiers = fleet.tier_C[large] - lowest + 1.0
    highest = 0
    for c in range(len(fleet.tier_C)):
        highest = max(highest, fleet.tier_C[c])
    for tier in range(highest + 1):
        start = boundary(params_P, load, tier - lowest, tiers) * devices
        end = boundary(params_P, load, tier - lowest + 1.0, tiers) * devices
        for c in range(len(fleet.tier_C)):
            if fleet.tier_C[c] != tier:
                continue
            rank = out_C[c]
            shared = min(end, rank + 1.0) - max(start, rank)
            out_C[c] = max(0.0, min(1.0, 1.0 - 4.0 * shared)) if rank >= 0.0 else 0.0


def score(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    query: Query,
    params_P: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Scores as `price.score` does, by the table's parameters, less a penalty outside of bands.

    Parameters: those of `price`, which are not used here, and the table.
    """
    told = slowdown.stretched(query)
    can = scores.capacity(fleet, told)
    band_distance(fleet, params_P, schedule_load(can, told), s.score_C)
    score_in_bands(fleet, load, told, can, params_P, s.score_C, s)


def score_in_bands(
    fleet: FleetArrays,
    load: LoadArrays,
    query: Query,
    can: Capacity,
    params_P: NDArray[np.float64],
    distance_C: NDArray[np.float64],
    s: Scratch,
) -> None:
    """Scores as `score` does, a query stretched already; distances may lie where the scores go."""
    y = scores.ladder_load(can, query.rate_short_rps)
    bias = scheduled(params_P, y, ON_TIME_BIAS)
    scores.weigh_on_time(query, bias, scheduled(params_P, y, ON_TIME_SHARPNESS), s)
    penalty = scheduled(params_P, y, BAND_PENALTY)
    for c in range(len(fleet.tier_C)):
        s.score_C[c] = -penalty * distance_C[c]
    price.charge(
        fleet,
        load,
        query,
        can,
        scheduled(params_P, y, LEVEL),
        scheduled(params_P, y, BACKLOG),
        scheduled(params_P, y, STEP_SHARE),
        scheduled(params_P, y, FORESIGHT),
        s,
    )
