"""Predictions: closed forms on simple loads, order on random ones."""

from __future__ import annotations

import numpy as np
import pytest

from router import kernels
from router.ledger import LoadArrays, zero_load
from router.types import NO_TIER_PIN
from tests.unit.router.fleets import fleet, random_load


def test_an_idle_fleet_predicts_the_unloaded_latency() -> None:
    """Without load the prediction is prompt + tokens * (step + one sequence)."""
    idle = fleet(2)
    out_C = np.zeros(idle.candidate_count)
    kernels.predict_latency_s(idle.arrays, zero_load(idle.candidate_count), 124.0, 8.0, out_C)
    large = idle.row["large", "e1"]
    assert out_C[large] == pytest.approx(124 * 0.000084 + 8 * (0.0105 + 0.00008))


def test_a_busy_neighbour_tier_costs_its_iterations() -> None:
    """Where nothing else comes, a tier with w tokens left adds min(w, own tokens) iterations."""
    one = fleet(1)
    load = zero_load(3)
    small, large = one.row["small", "e0"], one.row["large", "e0"]
    load.in_flight_C[large] = 1
    load.remaining_output_tokens_C[large] = 3
    idle_C, busy_C = np.zeros(3), np.zeros(3)
    kernels.predict_latency_s(one.arrays, zero_load(3), 10.0, 8.0, idle_C, 0.0, 0.0)
    kernels.predict_latency_s(one.arrays, load, 10.0, 8.0, busy_C, 0.0, 0.0)
    assert busy_C[small] - idle_C[small] == pytest.approx(3 * (0.0105 + 0.00008))


def test_arrivals_to_come_lengthen_the_cycle() -> None:
    """In a steady state n/output sequences are replaced per cycle, each with a prompt to compute.

    Ten sequences with four tokens left on average had about eight; ten eighths of a prompt of 100
    tokens come with each of our own eight and a half cycles.
    """
    one = fleet(1)
    large = one.row["large", "e0"]
    load = zero_load(3)
    load.in_flight_C[large] = 10
    load.remaining_output_tokens_C[large] = 40
    out_C = np.zeros(3)
    kernels.predict_latency_s(one.arrays, load, 50.0, 8.0, out_C, 100.0, 1.0)
    cycle_s = 0.0105 + 11 * 0.00008 + 10 / 8 * 100 * 0.000084
    assert out_C[large] == pytest.approx(50 * 0.000084 + 8.5 * cycle_s)


def test_a_schedule_grants_each_further_token_its_interval() -> None:
    """No more than a cycle lasts: what a token is early brings no other one sooner."""
    assert kernels.granted_s(0.02, 8.0, 0.1) == pytest.approx(7 * 0.02)
    assert kernels.granted_s(0.02, 8.0, 0.005) == pytest.approx(7 * 0.005)
    assert kernels.granted_s(0.02, 1.0, 0.1) == 0.0
    assert kernels.granted_s(0.02, 8.0, 0.0) == 0.0


@pytest.mark.parametrize("interval_s", [0.001, 0.011, 0.02, 0.2])
@pytest.mark.parametrize("tokens", [1.0, 1.5, 8.0, 40.0])
def test_with_a_schedule_the_first_token_or_the_last_binds(
    interval_s: float, tokens: float
) -> None:
    """The prediction is that of the later one of the two, each against its own due time."""
    two, rng = fleet(2), np.random.default_rng(7)
    for _ in range(20):
        load = random_load(rng, two.candidate_count, 20.0)
        first_C, last_C, paced_C = np.zeros((3, two.candidate_count))
        kernels.predict_latency_s(two.arrays, load, 100.0, 1.0, first_C)
        kernels.predict_latency_s(two.arrays, load, 100.0, tokens, last_C)
        kernels.predict_latency_s(
            two.arrays, load, 100.0, tokens, paced_C, token_interval_s=interval_s
        )
        last_C -= (tokens - 1.0) * interval_s
        np.testing.assert_allclose(paced_C, np.maximum(first_C, last_C))


def test_load_elsewhere_changes_nothing() -> None:
    """A device's prediction depends on its own load only."""
    two = fleet(2)
    load = zero_load(6)
    load.in_flight_C[two.row["large", "e0"]] = 50
    load.remaining_output_tokens_C[two.row["large", "e0"]] = 400
    idle_C, busy_C = np.zeros(6), np.zeros(6)
    kernels.predict_latency_s(two.arrays, zero_load(6), 10.0, 8.0, idle_C)
    kernels.predict_latency_s(two.arrays, load, 10.0, 8.0, busy_C)
    other = [row for (_, endpoint), row in two.row.items() if endpoint == "e1"]
    np.testing.assert_array_equal(busy_C[other], idle_C[other])


def test_more_load_never_predicts_less_time() -> None:
    """Adding a request like those already there lowers no prediction."""
    rng = np.random.default_rng(0)
    two = fleet(2)
    for _ in range(200):
        load = random_load(rng, 6, 40)
        row = int(rng.integers(6))
        more = LoadArrays(*(part_C.copy() for part_C in load))
        count = load.in_flight_C[row]
        more.in_flight_C[row] += 1
        more.waiting_prompt_tokens_C[row] += 50
        mean_left = load.remaining_output_tokens_C[row] / count if count else 8.0
        more.remaining_output_tokens_C[row] += mean_left
        before_C, after_C = np.zeros(6), np.zeros(6)
        kernels.predict_latency_s(two.arrays, load, 100.0, 8.0, before_C)
        kernels.predict_latency_s(two.arrays, more, 100.0, 8.0, after_C)
        assert np.all(after_C >= before_C - 1e-12)


def test_step_cost_is_shared_with_the_batch() -> None:
    """The device time of one more request falls with the batch it joins, down to its own part."""
    one = fleet(1)
    load = zero_load(3)
    alone_C, beside_C, free_C = np.zeros(3), np.zeros(3), np.zeros(3)
    kernels.request_device_time_s(one.arrays, load, 100.0, 8.0, 1.0, alone_C)
    load.in_flight_C[:] = 9
    kernels.request_device_time_s(one.arrays, load, 100.0, 8.0, 1.0, beside_C)
    kernels.request_device_time_s(one.arrays, load, 100.0, 8.0, 0.0, free_C)
    np.testing.assert_allclose(alone_C - free_C, 10 * (beside_C - free_C))


def test_no_slack_means_no_chance() -> None:
    """P(on time) is 0 without slack, and falls with the predicted time."""
    out_C = np.zeros(3)
    predicted_C = np.array([0.1, 0.4, 2.0])
    kernels.on_time_probability(predicted_C, 0.0, 1.0, 8.0, out_C)
    assert not out_C.any()
    kernels.on_time_probability(predicted_C, 0.4, 1.0, 8.0, out_C)
    assert out_C[0] > out_C[1] > out_C[2]
    assert out_C[1] == pytest.approx(0.5)


def test_floor_pin_and_availability_close_candidates() -> None:
    """Quality floor, tier pin and health each close what they should."""
    one = fleet(1)
    out_C = np.zeros(3, dtype=np.bool_)
    hard = 1
    assert kernels.allowed_mask(one.arrays, hard, 0.7, NO_TIER_PIN, 0.5, out_C) == 2
    assert not out_C[one.row["small", "e0"]]
    assert kernels.allowed_mask(one.arrays, hard, 0.0, 1, 0.5, out_C) == 1
    assert out_C[one.row["medium", "e0"]]
    down = one.with_availability(np.zeros(3))
    assert kernels.allowed_mask(down.arrays, hard, 0.0, NO_TIER_PIN, 0.5, out_C) == 0


def test_a_ramping_endpoint_gets_its_share_unless_it_is_the_last() -> None:
    """Draws above the ramp weight pass it by while another endpoint is up, and only then."""
    two = fleet(2)
    ramping = two.with_availability(np.array([1.0, 1.0, 1.0, 0.25, 0.25, 0.25]))
    out_C = np.zeros(6, dtype=np.bool_)
    assert kernels.allowed_mask(ramping.arrays, 0, 0.0, NO_TIER_PIN, 0.5, out_C) == 3
    assert kernels.allowed_mask(ramping.arrays, 0, 0.0, NO_TIER_PIN, 0.1, out_C) == 6
    alone = two.with_availability(np.array([0.0, 0.0, 0.0, 0.25, 0.25, 0.25]))
    assert kernels.allowed_mask(alone.arrays, 0, 0.0, NO_TIER_PIN, 0.9, out_C) == 3


def test_the_best_is_allowed_and_finite() -> None:
    """NaN, infinity and closed rows are never chosen; the first of equals is."""
    score_C = np.array([np.nan, 5.0, 2.0, 2.0, np.inf])
    allowed_C = np.array([True, False, True, True, True])
    assert kernels.best_allowed(score_C, allowed_C) == 2
    assert kernels.best_allowed(score_C, np.zeros(5, dtype=np.bool_)) == -1
