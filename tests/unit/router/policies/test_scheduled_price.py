"""The scheduled price: its table, its bands of devices, and its scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from router.ledger import zero_load
from router.policies import price, scheduled_price
from router.policies.dqn import PRICE_DEFAULTS_P
from router.policies.scheduled_price import ScheduleError, parameters_of, table_of
from router.policies.scores import capacity, ladder_load
from tests.unit.router import fleets

QUERY = fleets.QUERY._replace(rate_short_rps=100.0, rate_long_rps=100.0)


def table(boundaries: tuple[float, ...] = (0.25, 0.75), penalty: float = 0.1) -> dict[str, Any]:
    """Returns a table of two equal knots."""
    row = [-3.0, 8.0, 0.7, 0.4, 1.5, 5.0, penalty, *boundaries]
    return {
        "columns": list(scheduled_price.VALUES),
        "first_load": -0.5,
        "step": 1.0,
        "rows": [row, list(row)],
    }


def parameters(table: dict[str, Any]) -> NDArray[np.float64]:
    """Returns the price's defaults and a table."""
    return np.array([*PRICE_DEFAULTS_P, *parameters_of(table)])


def distances(boundaries: tuple[float, ...], device_count: int = 4) -> NDArray[np.float64]:
    """Returns the distances of a fleet's candidates from their bands, by device and tier."""
    fleet = fleets.fleet(device_count).arrays
    out_C = np.full(len(fleet.tier_C), np.nan)
    scheduled_price.band_distance(fleet, parameters(table(boundaries)), 0.0, out_C)
    out_DT = np.full((device_count, 3), np.nan)
    out_DT[fleet.device_C, fleet.tier_C] = out_C
    return out_DT


def test_table_survives_the_snapshot_form() -> None:
    """What is written to a snapshot reads back to the same parameters."""
    found = parameters(table((0.1, 0.6)))
    assert parameters_of(table_of(found)) == found[scheduled_price.PRICE_COUNT :].tolist()
    assert table_of(PRICE_DEFAULTS_P) == {}
    assert parameters_of({}) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": 0.0}, "schedule.step"),
        ({"first_load": float("nan")}, "schedule.first_load"),
        ({"rows": []}, "schedule.rows"),
        ({"rows": [[1.0] * 7]}, r"schedule.rows\[0\]"),
        ({"rows": [[1.0] * 9, [1.0] * 8]}, r"schedule.rows\[1\]"),
        ({"rows": [[1.0] * 8 + [1e9]]}, r"schedule.rows\[0\]"),
        ({"rows": [[1.0] * 8 + ["x"]]}, r"schedule.rows\[0\]"),
        ({"columns": ["level"]}, "schedule.columns"),
    ],
)
def test_broken_tables_are_refused(change: dict[str, Any], says: str) -> None:
    """A broken table is refused with the part that is wrong."""
    with pytest.raises(ScheduleError, match=says):
        parameters_of(table() | change)


def test_values_are_linear_between_knots_and_constant_beyond() -> None:
    """A column is read off a line between its knots and keeps its ends."""
    wanted = table()
    wanted["rows"][1][0] = 1.0
    found_P = parameters(wanted)
    found = [scheduled_price.scheduled(found_P, load, 0) for load in (-2.0, -0.5, 0.0, 0.5, 3.0)]
    np.testing.assert_allclose(found, [-3.0, -3.0, -1.0, 1.0, 1.0])


def test_bands_follow_the_boundaries() -> None:
    """Each device is open to the tiers whose band it lies in, and closed to the others."""
    np.testing.assert_array_equal(
        distances((0.25, 0.75)), [[0, 1, 1], [1, 0, 1], [1, 0, 1], [1, 1, 0]]
    )
    np.testing.assert_array_equal(
        distances((0.0, 0.625)), [[1, 0, 1], [1, 0, 1], [1, 0, 0], [1, 1, 0]]
    )


@given(
    low=st.floats(min_value=-0.3, max_value=1.3),
    high=st.floats(min_value=-0.3, max_value=1.3),
    device_count=st.integers(min_value=1, max_value=7),
)
def test_every_device_is_open_to_a_tier(low: float, high: float, device_count: int) -> None:
    """Wherever the boundaries lie, no device is closed to all and none goes without a tier."""
    found_DT = distances((min(low, high), max(low, high)), device_count)
    assert ((found_DT >= 0.0) & (found_DT <= 1.0)).all()
    assert (found_DT.min(axis=1) == 0.0).all()


def test_lost_device_moves_the_bands() -> None:
    """The remaining devices take up the bands; what is lost has no band."""
    fleet = fleets.fleet(5).arrays
    fleet.availability_C[fleet.device_C == 1] = 0.0
    out_C = np.zeros(len(fleet.tier_C))
    scheduled_price.band_distance(fleet, parameters(table((0.25, 0.75))), 0.0, out_C)
    large_C = (fleet.tier_C == 2) & (fleet.availability_C > 0.0)
    assert [float(x) for x in out_C[large_C]] == [1.0, 1.0, 1.0, 0.0]


def test_scores_are_those_of_price_where_all_is_in_band() -> None:
    """With price's own values at every knot and no penalty the scores are price's."""
    level = [float(PRICE_DEFAULTS_P[i]) for i in (1, 4, 5, 6, 7)]
    fleet = fleets.fleet(2).arrays
    query = QUERY._replace(rate_short_rps=322.0)
    load = fleets.random_load(np.random.default_rng(1), 6, 6.0)
    y = ladder_load(capacity(fleet, query), query.rate_short_rps)
    at_y = PRICE_DEFAULTS_P[0] + PRICE_DEFAULTS_P[2] * y + PRICE_DEFAULTS_P[3] * y * y
    wanted = table()
    row = [float(at_y), *level, 0.0, 0.0, 1.0]
    wanted["rows"] = [row, list(row)]
    allowed_C = np.ones(6, bool)
    args = (fleet, load, allowed_C, query)
    as_price = fleets.compute_scores(price.score, *args, PRICE_DEFAULTS_P)
    scheduled = fleets.compute_scores(scheduled_price.score, *args, parameters(wanted))
    np.testing.assert_allclose(scheduled, as_price, rtol=1e-12)


def test_penalty_is_paid_outside_the_band_only() -> None:
    """A candidate outside its band scores lower by the penalty, one inside stays as it is."""
    fleet = fleets.fleet(4).arrays
    load, allowed_C = zero_load(12), np.ones(12, bool)
    args = (fleet, load, allowed_C, QUERY)
    free = fleets.compute_scores(scheduled_price.score, *args, parameters(table(penalty=0.0)))
    paid = fleets.compute_scores(scheduled_price.score, *args, parameters(table(penalty=0.1)))
    out_C = np.zeros(12)
    scheduled_price.band_distance(fleet, parameters(table()), 0.0, out_C)
    np.testing.assert_allclose(free - paid, 0.1 * out_C, atol=1e-12)


def test_bands_hold_still_under_noise_and_move_with_traffic() -> None:
    """The load the bands are read at keeps to the long rate until the short one really differs."""
    fleet = fleets.fleet(4).arrays

    def read(short: float, long: float) -> float:
        query = QUERY._replace(rate_short_rps=short, rate_long_rps=long)
        return scheduled_price.schedule_load(capacity(fleet, query), query)

    assert read(220.0, 200.0) == read(200.0, 200.0)
    assert read(2000.0, 200.0) == read(2000.0, 2000.0)
    assert read(200.0, 0.0) == read(200.0, 200.0)
