"""A router's home: the devices that it alone fills, so that many routers do not herd.

Routers know of each other what their last reports said, and whoever acts on the same old picture
chooses the same devices. So of several routers each has a home, a part of the devices of every kind
as large as its part of the traffic, and sends its requests there: of what is under way at home it
knows nearly everything, exactly and at once. It looks further only if no candidate at home is
expected to answer in time. Load balancers call such a part a deterministic aperture, or a subset.

Kernels in the manner of `router.kernels`. Shape letters: C candidates, D devices.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from router import safety
from router.fleet import FleetArrays
from router.policies import scores
from router.policies.scores import Query

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from router.fleet import Fleet
    from router.ledger import LoadArrays


class Share(NamedTuple):
    """A router's stretch of all devices, laid out from 0 to 1.

    Attributes:
        start: where it begins, 0 to 1.
        end: where it ends, 0 to 1, not below `start`.
    """

    start: float = 0.0
    end: float = 1.0


WHOLE: Final = Share()
"""Everything is home."""
LEAST_PART: Final = 0.25
"""Of a device, what must be in a stretch for it to be home: parts of the traffic are never quite
equal, and routers that share a device know less of it."""


def equal_share(rank: int, count: int) -> Share:
    """Returns the stretch of one of `count` routers alike, `rank` of which come before it."""
    return Share(rank / count, (rank + 1) / count)


def stays(
    fleet: FleetArrays,
    load: LoadArrays,
    allowed_C: NDArray[np.bool_],
    slack_s: float,
    prompt_tokens: float,
    event_tokens: float,
    scratch_C: NDArray[np.float64],
    token_interval_s: float = 0.0,
) -> bool:
    """Returns whether a request stays at home; closes what is then not open to it.

    It does if a candidate at home is expected in time: in calm traffic one prediction is made, and
    none where everything is home. Else it looks further, as a guest: away from home, of all tiers
    that it may go to, only the smallest is open to it.

    Args:
        fleet: candidates, and which of them are home.
        load: outstanding load.
        allowed_C: candidates the request may go to; changed in place.
        slack_s: time left, seconds.
        prompt_tokens: of the request.
        event_tokens: predicted tokens until the deadline's event.
        scratch_C: working space; afterwards the predicted latencies of what was looked at, seconds.
        token_interval_s: between the due times of two tokens, seconds; 0 = there is no schedule.
    """
    at_home, away, smallest = 0, 0, -1
    for c in range(len(allowed_C)):
        if not allowed_C[c]:
            continue
        if fleet.home_C[c]:
            at_home += 1
        else:
            away += 1
        if smallest < 0 or fleet.tier_C[c] < smallest:
            smallest = fleet.tier_C[c]
    if at_home == 0 or away == 0:
        return False
    is_expected = False
    for c in range(len(allowed_C)):
        if allowed_C[c] and fleet.home_C[c] and not is_expected:
            safety.predict_one(
                fleet, load, prompt_tokens, event_tokens, c, scratch_C, token_interval_s
            )
            is_expected = safety.in_reach(scratch_C[c], slack_s, 1.0)
    for c in range(len(allowed_C)):
        if not fleet.home_C[c] and (is_expected or fleet.tier_C[c] != smallest):
            allowed_C[c] = False
    return is_expected


def at_home(fleet: FleetArrays, usable_C: NDArray[np.float64]) -> FleetArrays:
    """Returns the fleet as if home were all of it.

    Args:
        fleet: candidates, and which of them are home.
        usable_C: its availability, filled.
    """
    for c in range(len(usable_C)):
        usable_C[c] = fleet.availability_C[c] if fleet.home_C[c] else 0.0
    return FleetArrays(
        fleet.tier_C,
        fleet.device_C,
        fleet.peers_CP,
        fleet.step_s_C,
        fleet.per_sequence_s_C,
        fleet.per_prompt_token_s_C,
        fleet.overhead_s_C,
        fleet.max_batch_C,
        fleet.quality_KC,
        usable_C,
        fleet.home_C,
        fleet.prefix_room_C,
        fleet.cached_C,
    )


def own_traffic(q: Query) -> Query:
    """Returns a request that stays at home: this router's part of the traffic is all there is.

    The router's own rate over 0.2 s is fresh but noisy, so it counts by how old the mesh's is.
    """
    aged = scores.aged_share(q)
    rate_rps = (1.0 - aged) * q.rate_short_rps * q.own_share + aged * q.own_rate_rps
    return Query(
        q.task, q.slack_s, q.prompt_tokens, q.output_tokens, q.event_tokens, q.soft_decay_s,
        q.mean_prompt_tokens, rate_rps, q.rate_long_rps * q.own_share, 0.0, q.draw, 1.0,
        q.own_rate_rps, q.burstiness, q.slowdown, q.pressure, q.is_small, q.log_price,
        q.token_interval_s,
    )  # fmt: skip


class Layout:
    """The devices of a fleet in the order in which they are shared out, kind by kind.

    Devices are of one kind if their tiers cost the same as profiled. Every kind is laid out from 0
    to 1 by itself, so that each router has its part of the fast devices and of the slow ones.
    """

    def __init__(self, fleet: Fleet) -> None:
        """Lays a fleet out as its profiles have it."""
        arrays = fleet.arrays
        self._device_C = arrays.device_C
        self._device_count = len(fleet.devices)
        costs = (arrays.step_s_C, arrays.per_sequence_s_C, arrays.per_prompt_token_s_C)
        kind_D: list[list[tuple[float, ...]]] = [[] for _ in fleet.devices]
        for c, device in enumerate(arrays.device_C):
            kind_D[device].append((float(arrays.tier_C[c]), *(float(cost[c]) for cost in costs)))
        kinds: dict[tuple[tuple[float, ...], ...], list[int]] = {}
        for device, kind in enumerate(kind_D):
            kinds.setdefault(tuple(kind), []).append(device)
        self._kinds = tuple(map(np.array, kinds.values()))

    def stretches(self, share: Share) -> tuple[tuple[int, int], ...]:
        """Returns the first device of each kind that is home, and the first after it that is not.

        A device on a cut is home on both sides of it if LEAST_PART of it is, and at least one
        device of each kind is home.
        """
        found = []
        for devices in self._kinds:
            count = len(devices)
            start, end = share.start * count, share.end * count
            first = math.floor(start + LEAST_PART)
            last = math.ceil(end - LEAST_PART) - 1
            if last < first:
                first = last = min(math.floor((start + end) / 2.0), count - 1)
            found.append((first, min(last, count - 1) + 1))
        return tuple(found)

    def home_C(self, stretches: tuple[tuple[int, int], ...]) -> NDArray[np.bool_]:
        """Returns which candidates are home, bool [C]."""
        home_D = np.zeros(self._device_count, np.bool_)
        for devices, (first, end) in zip(self._kinds, stretches, strict=True):
            home_D[devices[first:end]] = True
        return home_D[self._device_C]
