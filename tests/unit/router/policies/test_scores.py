"""What score kernels share: readings of the load, chances, rewards, preference."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router import kernels
from router.ledger import zero_load
from router.policies import scores
from tests.unit.router import fleets

QUERY = fleets.QUERY


def test_a_request_stands_for_the_mean_where_it_is_unknown() -> None:
    """Before anything was seen the request's own prompt is the best guess."""
    assert scores.mean_prompt(QUERY) == QUERY.prompt_tokens
    assert scores.mean_prompt(QUERY._replace(mean_prompt_tokens=40.0)) == 40.0


def test_devices_without_a_usable_candidate_do_not_count() -> None:
    """A lost device carries nothing; a fleet that lost all of them still counts as one."""
    fleet = fleets.fleet(3)
    assert scores.usable_device_count(fleet.arrays) == 3
    lost = fleet.with_availability(np.array([0.0] * 3 + [0.0, 1.0, 1.0] + [1.0] * 3))
    assert scores.usable_device_count(lost.arrays) == 2
    none = fleet.with_availability(np.zeros(9))
    assert scores.usable_device_count(none.arrays) == 1


def test_extreme_tiers_are_the_usable_ones() -> None:
    """The largest and smallest candidate are among those that can be used, the first if even."""
    fleet = fleets.fleet(2)
    assert scores.extreme_candidate(fleet.arrays, True) == 2
    assert scores.extreme_candidate(fleet.arrays, False) == 0
    partly = fleet.with_availability(np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])).arrays
    assert scores.extreme_candidate(partly, True) == scores.extreme_candidate(partly, False) == 1


@pytest.mark.parametrize(("largest", "load"), [(True, 0.0), (False, 1.0)])
def test_ladder_load_is_0_where_the_largest_fills_and_1_where_the_smallest_does(
    largest: bool, load: float
) -> None:
    """At the rate that fills all devices with one end of the ladder it has that end's value."""
    for device_count in (1, 4):
        arrays = fleets.fleet(device_count).arrays
        end = scores.extreme_candidate(arrays, largest)
        time_s = kernels.full_batch_time_s(arrays, end, 100.0, 8.0)
        rate_rps = device_count / time_s
        can = scores.capacity(arrays, QUERY)
        assert scores.ladder_load(can, rate_rps) == pytest.approx(load, abs=1e-9)


@pytest.mark.parametrize(("rate_rps", "load"), [(0.0, -2.0), (1e-9, -2.0), (1e9, 2.0)])
def test_ladder_load_is_bounded(rate_rps: float, load: float) -> None:
    """No traffic and absurd traffic stay within the limits."""
    assert scores.ladder_load(scores.capacity(fleets.fleet().arrays, QUERY), rate_rps) == load


@pytest.mark.parametrize(
    ("predicted_s", "decay_s", "share"),
    [
        (9.0, 0.0, 0.25),
        (0.3, 0.2, 1.0),
        (0.6, 0.2, 0.25 + 0.75 * math.exp(-1.0)),
        (1e9, 0.2, 0.25),
    ],
)
def test_a_late_answer_earns_the_decay_where_the_deadline_is_soft(
    predicted_s: float, decay_s: float, share: float
) -> None:
    """A hard deadline pays by the chance alone, a soft one also for what comes late."""
    assert scores.reward_share(0.25, predicted_s, 0.4, decay_s) == pytest.approx(share)


def test_a_preferred_tier_wins_then_lower_ones_then_higher_ones() -> None:
    """Medium before small before large, whatever the backlog; inside a tier the idle device."""
    fleet, load = fleets.fleet(2).arrays, zero_load(6)
    load.in_flight_C[1] = 8.0
    load.remaining_output_tokens_C[1] = 64.0
    s = scores.scratch(6)
    scores.predict(fleet, load, QUERY, s)
    scores.prefer_tier(fleet, 1.0, s)
    assert np.argsort(-s.score_C).tolist() == [4, 1, 3, 0, 5, 2]


def test_no_two_fields_of_the_scratch_share_an_array() -> None:
    """A score that is written is no prediction."""
    s = scores.scratch(2)
    s.score_C[0] = 1.0
    assert [column.tolist() for column in s] == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
