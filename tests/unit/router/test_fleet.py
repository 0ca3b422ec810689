"""Fleets: candidates of endpoints, their costs, and what changes while they run."""

from __future__ import annotations

import numpy as np
import pytest

from router.fleet import EndpointSpec, build_fleet
from tests.unit.router import fleets


def test_candidates_come_by_endpoint_then_by_tier() -> None:
    """Rows follow the endpoints' order, and inside one the catalog's order of tiers."""
    one = EndpointSpec("b", "b:1", "d0", {"large": "opt", "small": "opt-s"})
    two = EndpointSpec("a", "a:1", "d1", {"medium": "m"})
    fleet = build_fleet(fleets.catalog(), [one, two], {"": fleets.profile()})
    assert [fleet.candidate(row) for row in range(fleet.candidate_count)] == [
        ("small", one),
        ("large", one),
        ("medium", two),
    ]
    assert fleet.row["large", "b"] == 1
    assert fleet.arrays.quality_KC[1].tolist() == [0.4, 1.0, 0.8]


def test_endpoints_of_a_device_are_peers() -> None:
    """Two endpoints that name one device share its time; one without a name has its own."""
    specs = [EndpointSpec(name, f"{name}:1", "d0", {"small": "s"}) for name in "ab"]
    specs.append(EndpointSpec("c", "c:1", "", {"small": "s"}))
    fleet = build_fleet(fleets.catalog(), specs, {"": fleets.profile()})
    assert fleet.devices == ("d0", "c")
    assert fleet.arrays.peers_CP.tolist() == [[0, 1], [0, 1], [2, -1]]


def test_a_faster_endpoint_takes_less_time() -> None:
    """Twice the speed halves every cost of the profile."""
    usual, fast = fleets.fleet().arrays, fleets.fleet(speed=2.0).arrays
    for name in ("step_s_C", "per_sequence_s_C", "per_prompt_token_s_C", "overhead_s_C"):
        np.testing.assert_allclose(getattr(fast, name), getattr(usual, name) / 2.0)
    assert fast.max_batch_C.tolist() == usual.max_batch_C.tolist()


def test_slowness_is_of_the_profile_not_of_the_last_one() -> None:
    """A device that is slow and well again costs what it cost at first; others never changed."""
    first = fleets.fleet()
    slow = first.with_slowness(np.array([3.0, 1.0]))
    np.testing.assert_allclose(slow.arrays.step_s_C[:3], 3.0 * first.arrays.step_s_C[:3])
    np.testing.assert_allclose(slow.arrays.step_s_C[3:], first.arrays.step_s_C[3:])
    well = slow.with_slowness(np.array([1.5, 1.0])).with_slowness(np.ones(2))
    np.testing.assert_allclose(well.arrays.step_s_C, first.arrays.step_s_C)
    np.testing.assert_allclose(well.arrays.overhead_s_C, first.arrays.overhead_s_C)


def test_times_are_taken_over_in_place() -> None:
    """Whoever holds the arrays sees the other fleet's times."""
    fleet, step_s_C = fleets.fleet(), fleets.fleet().arrays.step_s_C
    arrays = fleet.arrays
    fleet.copy_times(fleets.fleet().with_slowness(np.array([3.0, 1.0])))
    assert fleet.arrays is arrays
    np.testing.assert_allclose(arrays.step_s_C / step_s_C, [3.0] * 3 + [1.0] * 3)
    assert fleet.slowness_D.tolist() == [3.0, 1.0]


@pytest.mark.parametrize(
    ("endpoint", "unknown"),
    [
        (EndpointSpec("a", "a:1", "d", {"giant": "g"}), "giant"),
        (EndpointSpec("a", "a:1", "d", {"small": "s"}, profile="h100"), "h100"),
    ],
)
def test_an_unknown_name_is_refused(endpoint: EndpointSpec, unknown: str) -> None:
    """A tier or a profile that is not known is named by the error."""
    with pytest.raises(KeyError, match=unknown):
        build_fleet(fleets.catalog(), [endpoint], {"": fleets.profile()})


def test_no_endpoint_makes_an_empty_fleet() -> None:
    """A router that knows no endpoint yet has arrays without rows."""
    fleet = build_fleet(fleets.catalog(), [], {"": fleets.profile()})
    assert fleet.candidate_count == 0
    assert fleet.arrays.quality_KC.shape == (2, 0)
