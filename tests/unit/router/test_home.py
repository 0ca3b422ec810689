"""A router's home: which devices it is, and when a request stays there."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet import Fleet
from router.home import WHOLE, Layout, Share, at_home, equal_share, own_traffic, stays
from router.ledger import zero_load
from tests.unit.router import fleets

CALM_S, SHORT_S = 0.4, 1e-6
QUERY = fleets.QUERY


def devices_at_home(fleet: Fleet, share: Share) -> list[int]:
    """Returns the devices of a stretch."""
    layout = Layout(fleet)
    home_C = layout.home_C(layout.stretches(share))
    return sorted({int(d) for d in fleet.arrays.device_C[home_C]})


@given(devices=st.integers(1, 40), parts=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40))
def test_homes_cover_every_device_and_none_is_empty(devices: int, parts: list[float]) -> None:
    """However unequal the routers are, and however many of them."""
    fleet, total = fleets.fleet(devices), sum(parts) or 1.0
    cuts = [0.0, *np.cumsum(parts) / total]
    cuts[-1] = 1.0
    homes = [devices_at_home(fleet, Share(a, max(a, b))) for a, b in itertools.pairwise(cuts)]
    assert set().union(*homes) == set(range(devices))
    assert all(homes)
    assert all(home == list(range(home[0], home[-1] + 1)) for home in homes)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_equal_routers_share_equally(count: int) -> None:
    """No device is home to two where it comes out even."""
    homes = [devices_at_home(fleets.fleet(8), equal_share(rank, count)) for rank in range(count)]
    assert [len(home) for home in homes] == [8 // count] * count
    assert sorted(itertools.chain.from_iterable(homes)) == list(range(8))


def test_nearly_equal_routers_share_nothing() -> None:
    """Parts of the traffic are never quite equal."""
    fleet = fleets.fleet(4)
    cuts = [0.0, 0.27, 0.48, 0.77, 1.0]
    homes = [devices_at_home(fleet, Share(a, b)) for a, b in itertools.pairwise(cuts)]
    assert homes == [[0], [1], [2], [3]]


def test_a_device_on_a_cut_is_home_to_both() -> None:
    """Three routers before four devices have two of them each."""
    homes = [devices_at_home(fleets.fleet(4), equal_share(rank, 3)) for rank in range(3)]
    assert homes == [[0, 1], [1, 2], [2, 3]]


def test_every_kind_of_device_is_shared_out_by_itself() -> None:
    """Nobody has all the fast ones."""
    fleet = fleets.fleet(8)
    fleet.arrays.step_s_C[fleet.arrays.device_C < 4] *= 2.0
    assert devices_at_home(fleet, equal_share(0, 4)) == [0, 4]
    assert devices_at_home(fleet, equal_share(3, 4)) == [3, 7]


class Asked:
    """A request that may go to any of four devices, of which the first is home."""

    def __init__(self) -> None:
        self.fleet = fleets.fleet(4)
        layout = Layout(self.fleet)
        self.home_C = layout.home_C(layout.stretches(equal_share(0, 4)))
        self.fleet.arrays.home_C[:] = self.home_C
        self.allowed_C = np.ones(12, np.bool_)
        self.scratch_C = np.full(12, math.nan)

    def stays(self, slack_s: float) -> bool:
        """Returns what `stays` returns."""
        arrays, load = self.fleet.arrays, zero_load(12)
        return stays(arrays, load, self.allowed_C, slack_s, 100.0, 8.0, self.scratch_C)


def test_a_request_stays_at_home_while_it_can_be_answered_there() -> None:
    """One prediction settles it."""
    asked = Asked()
    assert asked.stays(CALM_S)
    assert asked.allowed_C.tolist() == asked.home_C.tolist()
    assert np.isfinite(asked.scratch_C).sum() == 1


def test_a_request_looks_further_when_home_would_miss() -> None:
    """As a guest, who takes the smallest tier."""
    asked = Asked()
    assert not asked.stays(SHORT_S)
    assert asked.allowed_C.tolist() == (asked.home_C | (asked.fleet.arrays.tier_C == 0)).tolist()


def test_a_request_goes_anywhere_when_home_is_closed() -> None:
    """Devices that left, or failed it before, are no home."""
    asked = Asked()
    asked.allowed_C &= ~asked.home_C
    assert not asked.stays(CALM_S)
    assert asked.allowed_C.sum() == 9


def test_a_router_without_others_predicts_nothing() -> None:
    """Where everything is home there is nothing to choose."""
    asked = Asked()
    asked.fleet.arrays.home_C[:] = True
    assert not asked.stays(CALM_S)
    assert asked.allowed_C.all()
    assert np.isnan(asked.scratch_C).all()


def test_at_home_nothing_else_is_seen() -> None:
    """What a policy sees is a mesh of the home's devices and of this router's requests."""
    asked = Asked()
    seen = at_home(asked.fleet.arrays, np.zeros(12))
    assert seen.availability_C.tolist() == asked.home_C.astype(float).tolist()
    query = QUERY._replace(
        rate_short_rps=90.0, rate_long_rps=80.0, own_share=0.25, own_rate_rps=30.0, state_age_s=0.3
    )
    found = own_traffic(query)
    # 90 a quarter of which is its own, and 30 that it counted, by the age of the state over 0.4 s.
    assert found.rate_short_rps == pytest.approx(0.25 * 90.0 * 0.25 + 0.75 * 30.0)
    assert found == query._replace(
        rate_short_rps=found.rate_short_rps, rate_long_rps=20.0, own_share=1.0, state_age_s=0.0
    )


def test_everything_is_home_by_default() -> None:
    """A fleet as it is built, and the stretch of a router that was told none."""
    fleet = fleets.fleet(3)
    assert fleet.arrays.home_C.all()
    assert devices_at_home(fleet, WHOLE) == [0, 1, 2]
