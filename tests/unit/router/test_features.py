"""Features: bounded and finite whatever comes in, and meaning what the table says."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router import features
from router.ledger import LoadArrays, zero_load
from tests.unit.router import fleets

anything = st.floats(allow_nan=True, allow_infinity=True)
positive = st.floats(min_value=0.0, max_value=1e12)
INDEX = {feature.name: i for i, feature in enumerate(features.FEATURES)}


def compute(
    load: LoadArrays,
    *,
    device_count: int = 2,
    task: int = 0,
    slack_s: float = 0.4,
    prompt_tokens: float = 100.0,
    output_tokens: float = 8.0,
    mean_prompt_tokens: float = 0.0,
    rate_short_rps: float = 10.0,
    rate_long_rps: float = 10.0,
    state_age_s: float = 0.0,
) -> NDArray[np.float32]:
    """Returns the feature matrix of a test fleet."""
    fleet = fleets.fleet(device_count)
    count = fleet.candidate_count
    out_CF = np.full((count, features.FEATURE_COUNT), np.nan, dtype=np.float32)
    features.compute_features(
        fleet.arrays,
        load,
        np.ones(count, dtype=np.bool_),
        task,
        slack_s,
        prompt_tokens,
        output_tokens,
        output_tokens,
        mean_prompt_tokens,
        rate_short_rps,
        rate_long_rps,
        state_age_s,
        np.zeros(count),
        np.zeros(count),
        out_CF,
    )
    return out_CF


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 3.0, 100.0, 1e9]),
    slack_s=anything,
    prompt_tokens=positive,
    output_tokens=positive,
    mean_prompt_tokens=anything,
    rate_short_rps=anything,
    rate_long_rps=anything,
    state_age_s=anything,
)
def test_always_finite_and_in_range(
    seed: int,
    scale: float,
    slack_s: float,
    prompt_tokens: float,
    output_tokens: float,
    mean_prompt_tokens: float,
    rate_short_rps: float,
    rate_long_rps: float,
    state_age_s: float,
) -> None:
    """Every feature is finite and inside its stated range for any input."""
    load = fleets.random_load(np.random.default_rng(seed), 6, scale)
    out_CF = compute(
        load,
        slack_s=slack_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        mean_prompt_tokens=mean_prompt_tokens,
        rate_short_rps=rate_short_rps,
        rate_long_rps=rate_long_rps,
        state_age_s=state_age_s,
    )
    assert np.isfinite(out_CF).all()
    for f, feature in enumerate(features.FEATURES):
        assert (out_CF[:, f] >= feature.low).all(), feature.name
        assert (out_CF[:, f] <= feature.high).all(), feature.name


def test_names_are_unique_and_counted() -> None:
    """The table names each column once."""
    assert len({feature.name for feature in features.FEATURES}) == features.FEATURE_COUNT


def test_fleet_size_changes_only_shared_load() -> None:
    """An idle candidate looks alike in small and big fleets, but for the load per device."""
    small_CF = compute(zero_load(6), device_count=2)
    big_CF = compute(zero_load(24), device_count=8)
    shared = [name for name in INDEX if not name.startswith("load_")]
    columns = [INDEX[name] for name in shared]
    np.testing.assert_array_equal(small_CF[:3, columns], big_CF[:3, columns])
    smallest = INDEX["load_smallest_short"]
    np.testing.assert_allclose(small_CF[0, smallest], 4.0 * big_CF[0, smallest], rtol=1e-5)


def test_time_scale_leaves_them_unchanged() -> None:
    """Stretching every time of profile, slack and arrivals by one factor changes no feature."""
    load = fleets.random_load(np.random.default_rng(3), 6, 20.0)
    factor = 5.0
    results = []
    for scale in (1.0, factor):
        fleet = fleets.fleet(2, speed=1.0 / scale)
        out_CF = np.zeros((6, features.FEATURE_COUNT), dtype=np.float32)
        features.compute_features(
            fleet.arrays,
            load,
            np.ones(6, dtype=np.bool_),
            1,
            0.4 * scale,
            100.0,
            8.0,
            8.0,
            110.0,
            300.0 / scale,
            200.0 / scale,
            0.1 * scale,
            np.zeros(6),
            np.zeros(6),
            out_CF,
        )
        results.append(out_CF)
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_work_is_split_by_tier() -> None:
    """Work of a smaller, the same and a larger tier on the device lands in its own column."""
    load = zero_load(6)
    load.in_flight_C[1] = 4.0
    load.remaining_output_tokens_C[1] = 16.0
    out_CF = compute(load)
    work = np.float32((16.0 * 0.00003 + 16.0 / 4.0 * 0.0039) / 0.4)
    for row, column in ((0, "larger_work"), (1, "same_work"), (2, "smaller_work")):
        np.testing.assert_allclose(out_CF[row, INDEX[column]], work, rtol=1e-5)
    assert (out_CF[3:, INDEX["device_backlog"]] == 0.0).all()


def test_pinned_request_measures_quality_against_what_is_allowed() -> None:
    """The quality gap of a request that may not use the large tier is zero on the medium tier."""
    fleet = fleets.fleet(1)
    out_CF = np.zeros((3, features.FEATURE_COUNT), dtype=np.float32)
    features.compute_features(
        fleet.arrays,
        zero_load(3),
        np.array([True, True, False]),
        0,
        0.4,
        100.0,
        8.0,
        8.0,
        0.0,
        1.0,
        1.0,
        0.0,
        np.zeros(3),
        np.zeros(3),
        out_CF,
    )
    assert out_CF[1, INDEX["quality_gap"]] == 0.0
    assert out_CF[0, INDEX["quality_gap"]] > 0.1
