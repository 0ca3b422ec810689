"""Features: bounded and finite whatever comes in, and meaning what the table says."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from router import features
from router.ledger import LoadArrays, zero_load
from router.policies import price
from router.policies.dqn import PRICE_DEFAULTS_P
from tests.unit.router import fleets

anything = st.floats(allow_nan=True, allow_infinity=True)
positive = st.floats(min_value=1.0, max_value=1e12)
INDEX = {feature.name: i for i, feature in enumerate(features.FEATURES)}


def compute(
    load: LoadArrays,
    *,
    own: LoadArrays | None = None,
    device_count: int = 2,
    speed: float = 1.0,
    allowed: list[bool] | None = None,
    **query: float,
) -> NDArray[np.float32]:
    """Returns the feature matrix of a test fleet."""
    return computed(
        load, own=own, device_count=device_count, speed=speed, allowed=allowed, **query
    )[0]


def computed(
    load: LoadArrays,
    *,
    own: LoadArrays | None = None,
    device_count: int = 2,
    speed: float = 1.0,
    allowed: list[bool] | None = None,
    **query: float,
) -> tuple[NDArray[np.float32], features.FeatureScratch]:
    """Returns the feature matrix of a test fleet and what it rests on."""
    fleet = fleets.fleet(device_count, speed=speed)
    count = fleet.candidate_count
    out_CF = np.full((count, features.FEATURE_COUNT), np.nan, dtype=np.float32)
    scratch = features.feature_scratch(count)
    features.compute_features(
        fleet.arrays,
        load,
        load if own is None else own,
        np.array(allowed) if allowed else np.ones(count, dtype=np.bool_),
        fleets.QUERY._replace(**query),  # type: ignore[arg-type]
        PRICE_DEFAULTS_P,
        scratch,
        False,
        out_CF,
    )
    return out_CF, scratch


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
    own_share=anything,
    own_rate_rps=anything,
    burstiness=anything,
    soft_decay_s=st.sampled_from([0.0, 0.2]),
    token_interval_s=st.sampled_from([0.0, 0.02, 60.0]),
)
def test_always_finite_and_in_range(seed: int, scale: float, **query: Any) -> None:
    """Every feature is finite and inside its stated range for any input."""
    rng = np.random.default_rng(seed)
    load, own = (fleets.random_load(rng, 6, scale) for _ in range(2))
    query["event_tokens"] = query["output_tokens"]
    with np.errstate(all="ignore"):
        out_CF = compute(load, own=own, **query)
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
    shared = [
        name for name in INDEX if not name.startswith(("load_", "ladder_", "price_", "prior_"))
    ]
    columns = [INDEX[name] for name in shared]
    np.testing.assert_array_equal(small_CF[:3, columns], big_CF[:3, columns])
    smallest = INDEX["load_smallest_short"]
    np.testing.assert_allclose(small_CF[0, smallest], 4.0 * big_CF[0, smallest], rtol=1e-5)


def test_time_scale_leaves_them_unchanged() -> None:
    """Stretching every time of profile, slack and arrivals by one factor changes no feature."""
    rng = np.random.default_rng(3)
    load, own = (fleets.random_load(rng, 6, 20.0) for _ in range(2))
    results = [
        compute(
            load,
            own=own,
            speed=1.0 / scale,
            task=1,
            slack_s=0.4 * scale,
            mean_prompt_tokens=110.0,
            rate_short_rps=300.0 / scale,
            rate_long_rps=200.0 / scale,
            state_age_s=0.1 * scale,
            own_share=0.5,
            own_rate_rps=140.0 / scale,
            token_interval_s=0.005 * scale,
        )
        for scale in (1.0, 5.0)
    ]
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
    out_CF = compute(zero_load(3), device_count=1, allowed=[True, True, False])
    assert out_CF[1, INDEX["quality_gap"]] == 0.0
    assert out_CF[0, INDEX["quality_gap"]] > 0.1


def test_base_is_the_price_score() -> None:
    """What a network corrects is the price policy's own score, to the last bit."""
    load = fleets.random_load(np.random.default_rng(1), 6, 20.0)
    query = fleets.QUERY._replace(rate_short_rps=500.0, state_age_s=0.3, own_share=0.5)
    out_CF, scratch = computed(load, rate_short_rps=500.0, state_age_s=0.3, own_share=0.5)
    expected_C = fleets.compute_scores(
        price.score, fleets.fleet(2).arrays, load, np.ones(6, np.bool_), query, PRICE_DEFAULTS_P
    )
    np.testing.assert_array_equal(scratch.seen.score_C, expected_C)
    gap_C = np.maximum(expected_C - expected_C.max(), -1.0)
    np.testing.assert_allclose(out_CF[:, features.BASE_COLUMN], gap_C, atol=1e-6)


def test_alone_nothing_is_reckoned() -> None:
    """A router with all the traffic takes the load as it is, however old the state."""
    load = fleets.random_load(np.random.default_rng(2), 6, 20.0)
    fresh_CF = compute(load, own=zero_load(6))
    old_CF = compute(load, own=zero_load(6), state_age_s=0.2)
    columns = [i for name, i in INDEX.items() if name != "state_age"]
    np.testing.assert_array_equal(fresh_CF[:, columns], old_CF[:, columns])


def test_old_picture_gives_way_to_the_own_load() -> None:
    """With a state older than the slack the load is the own one, scaled up by the own share."""
    own, seen, whole = zero_load(6), zero_load(6), zero_load(6)
    for load, count in ((own, 5.0), (whole, 20.0)):
        load.in_flight_C[4] = count
        load.remaining_output_tokens_C[4] = 4.0 * count
    seen.in_flight_C[:] = own.in_flight_C
    seen.in_flight_C[1] += 60.0
    seen.remaining_output_tokens_C[:] = 4.0 * seen.in_flight_C
    reckoned_CF = compute(
        seen, own=own, state_age_s=0.5, own_share=0.25, own_rate_rps=10.0, rate_short_rps=90.0
    )
    known_CF = compute(whole, rate_short_rps=40.0)
    same = ("predicted_over_slack", "device_backlog", "batch_fill", "load_tier_short")
    columns = [INDEX[name] for name in same]
    np.testing.assert_allclose(reckoned_CF[:, columns], known_CF[:, columns], rtol=1e-5)
    shift = INDEX["prior_shift"]
    assert reckoned_CF[1, shift] > reckoned_CF[4, shift]


def test_disturbance_counts_who_waits() -> None:
    """A request disturbs in proportion to how many run beside it, and nobody on an idle device."""
    load = zero_load(6)
    load.in_flight_C[1] = 4.0
    load.remaining_output_tokens_C[1] = 16.0
    few_CF = compute(load)
    load.in_flight_C[1], load.remaining_output_tokens_C[1] = 8.0, 32.0
    many_CF = compute(load)
    column = INDEX["disturbance"]
    np.testing.assert_allclose(many_CF[:3, column], 2.0 * few_CF[:3, column], rtol=1e-5)
    assert (few_CF[2, column] > few_CF[0, column] > 0.0).all()
    assert not few_CF[3:, column].any()


def test_columns_have_the_names_of_the_table() -> None:
    """A constant of this name holds the place of each feature."""
    for place, feature in enumerate(features.FEATURES):
        assert getattr(features, feature.name.upper()) == place
