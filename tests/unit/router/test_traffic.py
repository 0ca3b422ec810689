"""What a router learns of its own traffic: rates and burstiness."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import traffic
from router.traffic import Traffic
from trainer.simulation.state import ROUTER


@pytest.mark.parametrize("count", [0, 1, 40])
def test_an_arrival_that_was_none_leaves_nothing(count: int) -> None:
    """Also one that seemed to bring traffic back, and what was decided for it."""
    seen = Traffic(0.0)
    for i in range(count):
        traffic.count_arrival(seen, 0.01 * (i + 1), 10.0 + i)
    kept, before = dataclasses.replace(seen), traffic.remembered(seen)
    traffic.count_arrival(seen, 5.0, 500.0)
    traffic.note_others(seen, 100.0)
    assert seen != kept
    traffic.restore(seen, before)
    assert seen == kept
    assert len(before) == len(dataclasses.fields(Traffic))


@given(rate=st.floats(min_value=1.0, max_value=2000.0))
def test_a_steady_rate_is_found(rate: float) -> None:
    """After several time constants the mean over one interval of arrivals equals the true rate."""
    seen = Traffic(0.0)
    now_s = 0.0
    while now_s < 6.0 * traffic.SHORT_TAU_S + 6.0 / rate:
        now_s += 1.0 / rate
        traffic.count_arrival(seen, now_s, 10.0)
    times_s = now_s + np.linspace(0.0, 1.0 / rate, 21)
    mean_rps = np.mean([traffic.short_rate_rps(seen, float(time_s)) for time_s in times_s])
    assert mean_rps == pytest.approx(rate, rel=0.1)


def test_the_estimate_is_corrected_while_it_warms_up() -> None:
    """Half a time constant after the start a steady rate already reads right."""
    seen = Traffic(0.0)
    for i in range(1, 501):
        traffic.count_arrival(seen, i * 0.01, 10.0)
    rate_rps = traffic.rate_from_sum(
        traffic.long_sum(seen, 5.0), traffic.age_s(seen, 5.0), traffic.LONG_TAU_S
    )
    assert rate_rps == pytest.approx(100.0, rel=0.02)


def test_a_start_under_full_load_is_known_soon() -> None:
    """A router that has been up for long and gets 5,000 requests/s at once sees them in 20 ms."""
    seen = Traffic(0.0)
    assert traffic.short_rate_rps(seen, 99.0) == 0.0
    for i in range(101):
        traffic.count_arrival(seen, 100.0 + i * 0.0002, 10.0)
    assert traffic.short_rate_rps(seen, 100.02) == pytest.approx(5000.0, rel=0.1)


def test_the_first_arrival_is_no_endless_rate() -> None:
    """It reads as one in about a tenth of the time constant."""
    seen = Traffic(0.0)
    traffic.count_arrival(seen, 7.0, 10.0)
    assert 50.0 < traffic.short_rate_rps(seen, 7.0) < 55.0


@given(
    prompts=st.lists(st.tuples(st.integers(1, 2000), st.floats(0.0, 1.0)), min_size=2, max_size=40)
)
def test_the_mean_prompt_is_what_has_to_be_computed(prompts: list[tuple[int, float]]) -> None:
    """To take cached tokens out afterwards is to have counted the others alone."""
    seen, without = Traffic(0.0), Traffic(0.0)
    first = float(prompts[0][0])
    for i, (tokens, share) in enumerate(prompts):
        cached = 0.0 if i == 0 else share * (tokens - 1.0)
        traffic.count_arrival(seen, float(i), float(tokens))
        traffic.count_cached(seen, cached)
        traffic.count_arrival(without, float(i), tokens - cached)
    assert seen.mean_prompt == pytest.approx(without.mean_prompt)
    assert 1.0 <= seen.mean_prompt <= max(first, *(float(tokens) for tokens, _ in prompts))


def test_silence_lets_the_rate_fall() -> None:
    """Five time constants without arrivals leave under a hundredth."""
    seen = Traffic(0.0)
    for i in range(1, 1001):
        traffic.count_arrival(seen, i * 0.01, 10.0)
    before = traffic.short_rate_rps(seen, 10.0)
    assert traffic.short_rate_rps(seen, 11.0) < 0.01 * before


def test_a_clock_that_steps_back_changes_nothing() -> None:
    """An earlier stamp than the last neither decays nor inflates."""
    seen = Traffic(0.0)
    traffic.count_arrival(seen, 5.0, 10.0)
    assert traffic.short_rate_rps(seen, 4.0) == traffic.short_rate_rps(seen, 5.0)


def test_the_first_prompt_is_the_mean_and_later_ones_move_it() -> None:
    """One request says all there is to say; the next moves the mean by a fiftieth."""
    seen = Traffic(0.0)
    traffic.count_arrival(seen, 1.0, 100.0)
    assert seen.mean_prompt == 100.0
    traffic.count_arrival(seen, 2.0, 200.0)
    assert seen.mean_prompt == pytest.approx(102.0)


@pytest.mark.parametrize("squared_cv", [1.0, 16.0])
def test_burstiness_is_the_squared_cv_of_gaps(squared_cv: float) -> None:
    """Over many arrivals the estimate averages to the process's own figure."""
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(40):
        own, now_s = Traffic(0.0), 0.0
        assert traffic.burstiness(own) == 1.0
        for gap_s in rng.gamma(1.0 / squared_cv, squared_cv, 400):
            now_s += gap_s
            traffic.count_arrival(own, now_s, 10.0)
        seen.append(traffic.burstiness(own))
    assert np.mean(seen) == pytest.approx(squared_cv, rel=0.25)


def test_a_clock_has_no_burstiness() -> None:
    """Arrivals at even intervals read 0, whatever the rate."""
    seen = Traffic(0.0)
    for i in range(1, 300):
        traffic.count_arrival(seen, 0.25 * i, 10.0)
    assert traffic.burstiness(seen) == pytest.approx(0.0, abs=1e-9)


def test_the_simulator_keeps_the_same_fields() -> None:
    """A field added here is one the simulator's record must hold too."""
    names = {field.name for field in dataclasses.fields(Traffic)}
    assert names <= set(ROUTER.names or ())


def stopped_and_back(gaps_s: list[float], pause_s: float) -> tuple[float, float]:
    """Returns the short rate before a pause, and at the first arrival after it."""
    seen = Traffic(0.0)
    now_s = 0.0
    for gap_s in gaps_s:
        now_s += gap_s
        traffic.count_arrival(seen, now_s, 10.0)
    before = traffic.short_rate_rps(seen, now_s)
    traffic.count_arrival(seen, now_s + pause_s, 10.0)
    return before, traffic.short_rate_rps(seen, now_s + pause_s)


@pytest.mark.parametrize("pause_s", [0.3, 3.0, 300.0])
def test_traffic_that_comes_back_is_taken_for_what_it_was(pause_s: float) -> None:
    """However long it was away: a burst that meets idle devices must not get large tiers."""
    gaps = np.random.default_rng(1).exponential(1.0 / 400.0, 1000).tolist()
    before, after = stopped_and_back(gaps, pause_s)
    assert before == pytest.approx(400.0, rel=0.3)
    assert after == pytest.approx(400.0, rel=0.2)


def test_time_without_a_request_is_no_clump() -> None:
    """Neither that before the first one, nor stops: each return is known, and gaps stay even."""
    rng, now_s, seen = np.random.default_rng(1), 0.0, Traffic(0.0)
    for pause_s in (60.0, 2.0, 3.0, 2.0):
        now_s += pause_s
        traffic.count_arrival(seen, now_s, 10.0)
        if pause_s < 60.0:
            assert traffic.short_rate_rps(seen, now_s) == pytest.approx(50.0, rel=0.3)
        for gap_s in rng.exponential(1.0 / 45.0, 150):
            now_s += gap_s
            traffic.count_arrival(seen, now_s, 10.0)
        assert traffic.burstiness(seen) < traffic.CLUMPED


def test_traffic_that_comes_back_as_a_trickle_is_one_soon() -> None:
    """Not every one of its requests is taken for the burst that was."""
    now_s, seen = 0.0, Traffic(0.0)
    for gap_s in [0.02] * 300 + [3.0] * 30:
        now_s += gap_s
        traffic.count_arrival(seen, now_s, 10.0)
    assert traffic.short_rate_rps(seen, now_s) < 6.0


def test_the_others_come_back_too() -> None:
    """Their traffic is taken for what it was until a state comes that can tell what it is."""
    seen, now_s = Traffic(0.0), 0.0
    for _ in range(400):
        now_s += 0.02
        traffic.count_arrival(seen, now_s, 10.0)
        assert traffic.others_rate_rps(seen, 150.0, now_s) == 150.0
        traffic.note_others(seen, 150.0)
    told_s = now_s + 2.9
    assert traffic.others_rate_rps(seen, 0.0, told_s) == 0.0
    now_s += 3.0
    traffic.count_arrival(seen, now_s, 10.0)
    for told_rps, expected_rps in ((0.0, 150.0), (200.0, 200.0)):
        assert traffic.others_rate_rps(seen, told_rps, told_s) == expected_rps
    for later_s in (now_s + traffic.SHORT_TAU_S, now_s + 60.0):
        assert traffic.others_rate_rps(seen, 0.0, later_s) == 0.0


def test_others_that_stay_away_are_soon_expected_no_more() -> None:
    """Where a trickle comes back each time, each return is expected smaller."""
    seen, now_s, expected = Traffic(0.0), 0.0, []
    for gap_s in [0.02] * 300 + [3.0] * 30:
        now_s += gap_s
        traffic.count_arrival(seen, now_s, 10.0)
        told_rps = 150.0 if gap_s < 1.0 else 0.0
        rate_rps = traffic.others_rate_rps(seen, told_rps, now_s - 0.05)
        traffic.note_others(seen, rate_rps)
        expected.append(rate_rps)
    returns = expected[300:]
    assert returns[0] == 150.0
    assert returns == sorted(returns, reverse=True)
    assert returns[15] < 50.0
    assert returns[-1] < 10.0


def test_a_gap_that_is_no_stop_lets_the_rate_fall() -> None:
    """Short beside the time constant, or beside the gaps there are."""
    _, after = stopped_and_back([0.0025] * 1000, 0.19)
    assert after < 0.5 * 400.0
    _, after = stopped_and_back([0.5] * 100, 2.0)
    assert after < 6.0


def test_clumps_are_no_traffic_that_comes_back() -> None:
    """In clumped traffic every gap is ordinary: the next clump is seen as it comes."""
    gaps = np.random.default_rng(1).gamma(1.0 / 64.0, 64.0 / 400.0, 1000).tolist()
    _, after = stopped_and_back(gaps, 3.0)
    assert after < 6.0


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e4), st.sampled_from([0.2, 10.0]))
def test_an_old_sum_has_its_whole_weight(value: float, age_s: float, tau_s: float) -> None:
    """To the last digit: after many time constants nothing is missing any more."""
    weight = 1.0 - math.exp(-max(age_s, 0.1 * tau_s) / tau_s)
    assert traffic.rate_from_sum(value, age_s, tau_s) == value / weight
