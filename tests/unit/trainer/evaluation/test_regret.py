"""Regret removed, worked out by hand."""

from __future__ import annotations

import pytest

from tests.unit.trainer.evaluation.subjects import result
from trainer.evaluation.regret import coping_points, regret_point_rows, regret_rows

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_regret_removed_is_worked_out_by_hand() -> None:
    """Price loses 0.2 and 0.4 against the bound, dqn 0.1 and 0.2: half of it is removed."""
    results = [
        result("burst", 1, {"price": 0.8, "dqn": 0.9}),
        result("square", 1, {"price": 0.6, "dqn": 0.8}),
        result("other", 1, {"price": 0.1, "dqn": 0.1}),
    ]
    rows = regret_rows(results, {"burst": "bursty", "square": "bursty"}, "price")
    removed = {row["policy"]: row["removed"] for row in rows}
    assert removed == {"price": pytest.approx(0.0), "dqn": pytest.approx(0.5)}
    assert rows[0]["regret"] == pytest.approx(0.3)


def test_where_price_loses_nothing_there_is_no_share_of_it() -> None:
    """A hundredth lost beside nothing is not a million times as much."""
    rows = regret_rows([result("calm", 1, {"price": 1.0, "dqn": 0.99})], {"calm": "task"}, "price")
    removed = {row["policy"]: (row["removed"], row["removed_ci95"]) for row in rows}
    assert removed == {"price": (None, None), "dqn": (None, None)}
    assert rows[1]["regret"] == pytest.approx(0.01)


def test_regret_of_hopeless_points_is_left_out_where_asked() -> None:
    """At a point that always-small fails price loses 0.8; without it dqn removes half, not 1/6."""
    results = [
        result("burst", 1, {"price": 0.8, "dqn": 0.9}),
        result("markov", 1, {"price": 0.2, "dqn": 0.2}),
    ]
    small = [
        {"policy": "static-small", "shift": "burst", "load": 2.0, "safety_net": True,
         "availability": 0.98},
        {"policy": "static-small", "shift": "markov", "load": 2.0, "safety_net": True,
         "availability": 0.97},
        {"policy": "dqn", "shift": "markov", "load": 2.0, "safety_net": True, "availability": 1.0},
    ]  # fmt: skip
    points = coping_points(small, "static-small")
    families = {"burst": "bursty", "markov": "bursty"}
    everywhere = regret_rows(results, families, "price")
    coping = regret_rows(results, families, "price", points)
    removed = [
        next(r for r in rows if r["policy"] == "dqn")["removed"] for rows in (everywhere, coping)
    ]
    assert removed == [pytest.approx(0.1), pytest.approx(0.5)]
    assert [rows[0]["points"] for rows in (everywhere, coping)] == [2, 1]


def test_regret_is_shown_point_by_point() -> None:
    """Removed is the ratio of means; where price has no regret there is none to remove."""
    results = [
        *(result("burst", s, {"price": 1 - b, "dqn": 1 - b / 2}) for s, b in ((1, 0.2), (2, 0.4))),
        result("calm", 1, {"price": 1.0, "dqn": 0.99}),
    ]
    rows = {
        (row["shift"], row["policy"]): row
        for row in regret_point_rows(results, {"burst": "bursty"}, "price", {("burst", 2.0, True)})
    }
    burst, calm = rows["burst", "dqn"], rows["calm", "dqn"]
    assert burst["removed"] == pytest.approx(0.5)
    assert burst["removed_ci95"] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert (burst["family"], burst["small_copes"]) == ("bursty", True)
    assert (calm["removed"], calm["small_copes"]) == (None, False)
