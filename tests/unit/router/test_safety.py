"""The safety net: admission, the moment of a rescue, and its target."""

from __future__ import annotations

import numpy as np
import pytest

from router import kernels, safety
from router.ledger import LoadArrays, zero_load
from tests.unit.router import fleets

FLEET = fleets.fleet(2).arrays
OPEN_C = np.ones(6, dtype=np.bool_)


def busy(rows: list[int], count: float) -> LoadArrays:
    """Returns a load of `count` decoding requests on each of `rows`."""
    load = zero_load(6)
    load.in_flight_C[rows] = count
    load.remaining_output_tokens_C[rows] = 8.0 * count
    return load


def test_refuses_only_beyond_the_optimistic_reading() -> None:
    """A request is refused when even the shortened prediction is too long, and not before."""
    scratch_C = np.zeros(6)
    load = busy([0, 1, 2, 3, 4, 5], 300.0)
    kernels.predict_latency_s(FLEET, load, 100.0, 8.0, scratch_C)
    least_s = float(scratch_C.min())
    for share, admitted in ((0.69, False), (0.71, True)):
        slack_s = share * least_s
        assert safety.admit(FLEET, load, OPEN_C, slack_s, 100.0, 8.0, 0.7, scratch_C) is admitted


def test_one_candidate_in_reach_is_enough() -> None:
    """Only the last one is free: the request is admitted for its sake, unless it is closed."""
    load = busy([0, 1, 2, 3, 4], 300.0)
    arguments = (0.4, 100.0, 8.0, 0.7, np.zeros(6))
    assert safety.admit(FLEET, load, OPEN_C, *arguments)
    assert not safety.admit(FLEET, load, np.arange(6) < 5, *arguments)


def test_nothing_allowed_or_no_time_left_is_refused() -> None:
    """Without a candidate nobody can answer; without slack nothing is in time."""
    scratch_C = np.zeros(6)
    closed_C = np.zeros(6, dtype=np.bool_)
    idle = zero_load(6)
    assert not safety.admit(FLEET, idle, closed_C, 0.4, 1.0, 1.0, 0.7, scratch_C)
    assert not safety.admit(FLEET, idle, OPEN_C, 0.0, 1.0, 1.0, 0.7, scratch_C)


def test_rescue_moment_leaves_a_smaller_tier_its_time() -> None:
    """At the moment returned, margin x the small tier's latency still fits."""
    scratch_C = np.zeros(6)
    idle = zero_load(6)
    least_s = safety.least_rescue_s(FLEET, idle, OPEN_C, 2, 100.0, 8.0, scratch_C)
    moment_s = safety.rescue_at_s(least_s, 0.4, 1.25, 0.01)
    small_s = fleets.profile().tiers["small"].unloaded_latency_s(100, 8)
    np.testing.assert_allclose(moment_s, 0.4 - 1.25 * small_s - 0.01)


def test_no_rescue_from_the_smallest_tier_or_when_too_late() -> None:
    """There is nowhere to go from small, and no timer for a moment already past."""
    scratch_C = np.zeros(6)
    idle = zero_load(6)
    from_small_s = safety.least_rescue_s(FLEET, idle, OPEN_C, 0, 100.0, 8.0, scratch_C)
    from_large_s = safety.least_rescue_s(FLEET, idle, OPEN_C, 2, 100.0, 8.0, scratch_C)
    assert safety.rescue_at_s(from_small_s, 0.4, 1.25, 0.0) == -1.0
    assert safety.rescue_at_s(from_large_s, 0.001, 1.25, 0.0) == -1.0


def test_rescue_takes_the_best_quality_that_fits_on_the_free_device() -> None:
    """Medium where it fits, small where only small does, nothing where none does."""
    scratch_C = np.zeros(6)
    load = busy([0, 1, 2], 40.0)
    kernels.predict_latency_s(FLEET, load, 100.0, 8.0, scratch_C)
    small_s, medium_s = float(scratch_C[3]), float(scratch_C[4])
    for slack_s, expected in ((1.3 * medium_s, 4), (1.3 * small_s, 3), (0.9 * small_s, -1)):
        row = safety.choose_rescue(FLEET, OPEN_C, 2, 0, slack_s, 1.25, scratch_C.copy())
        assert row == expected


def test_about_to_miss_reads_progress() -> None:
    """With few tokens left a request is on its way; with all of them and no time it is lost."""
    load = busy([2], 4.0)
    assert not safety.about_to_miss(FLEET, load, 2, 0.05, 100.0, 2.0, False, 0.7)
    assert safety.about_to_miss(FLEET, load, 2, 0.05, 100.0, 8.0, True, 0.7)


@pytest.mark.parametrize("interval_s", [0.001, 0.012, 0.1])
def test_what_is_left_of_a_schedule_is_its_first_token_or_its_last(interval_s: float) -> None:
    """Of a stream that has not begun, the later one of the two against its own due time."""
    load = busy([0, 1, 2], 4.0)
    first_s, last_s = (
        safety.remaining_latency_s(FLEET, load, 2, 100.0, tokens, True) for tokens in (1.0, 8.0)
    )
    paced_s = safety.remaining_latency_s(FLEET, load, 2, 100.0, 8.0, True, interval_s)
    assert paced_s == pytest.approx(max(first_s, last_s - 7 * interval_s))


def test_rescue_avoids_the_device_that_was_slow() -> None:
    """With two idle devices, the rescue goes to the one the request is not on."""
    predicted_s_C = np.zeros(6)
    kernels.predict_latency_s(FLEET, zero_load(6), 100.0, 8.0, predicted_s_C)
    assert safety.choose_rescue(FLEET, OPEN_C, 2, 0, 0.4, 1.25, predicted_s_C) == 4
