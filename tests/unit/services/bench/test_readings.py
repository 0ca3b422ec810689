"""What is made of a measurement."""

from __future__ import annotations

import json

import pytest

from services.bench.readings import Reading, rows


def test_the_ratio_is_taken_round_by_round() -> None:
    """A round in which the machine was slow for both sides does not move the ratio."""
    judged = Reading("route", [70.0, 7.0, 80.0], [100.0, 10.0, 100.0]).judged()
    assert judged["ratio"] == pytest.approx(0.7)
    assert judged["value"] == 70.0
    assert judged["value_spread"] == pytest.approx(36.5)
    assert judged["within_budget"]


@pytest.mark.parametrize(
    ("name", "value", "reference", "is_within"),
    [
        ("decision_dqn_12", 30.0, 15.0, True),
        ("decision_dqn_12", 31.0, 15.0, False),
        ("route", 70.0, 100.0, True),
        ("route", 69.0, 100.0, False),
        ("state_64x64", 0.02, None, True),
        ("state_64x64", 0.03, None, False),
    ],
)
def test_budgets_have_a_side(
    name: str, value: float, reference: float | None, is_within: bool
) -> None:
    """Times and shares may not lie above their budget, rates not below; the limit is kept."""
    judged = Reading(name, [value], [] if reference is None else [reference]).judged()
    assert judged["within_budget"] is is_within


def test_without_a_budget_nothing_is_judged() -> None:
    """The numbers are told, and a table has dashes for the rest."""
    judged = Reading("envoy_added_p50", [300.0, 400.0], [100.0, 200.0]).judged()
    assert judged["within_budget"] is None
    assert rows({"envoy_added_p50": judged})[-1].endswith(
        "| 350 ± 50 | 150 ± 50 | 2.5 ± 0.5 | - | - |"
    )


def test_a_difference_that_drowned_in_noise_keeps_no_budget() -> None:
    """A reference below zero says nothing; the report has no number for it and stays JSON."""
    judged = Reading("generate_added_p99", [900.0], [-20.0]).judged()
    assert judged["ratio"] is None
    assert not judged["within_budget"]
    json.dumps(judged, allow_nan=False)
