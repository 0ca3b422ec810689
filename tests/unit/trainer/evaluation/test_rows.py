"""Rows of a report."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trainer.evaluation.subjects import result
from trainer.evaluation.report.tables import with_interval
from trainer.evaluation.rows import measured, ratio_of_means, violations

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_ratio_of_means_does_not_explode() -> None:
    """A seed with a denominator of nothing counts as every other: 3 / 1.5, not infinity."""
    values = ratio_of_means([2.0, 4.0], [0.0, 3.0])
    assert values.mean() == pytest.approx(2.0)
    np.testing.assert_allclose(values, [2.0 + 2.0 / 1.5, 2.0 - 2.0 / 1.5])


def test_one_seed_has_no_interval() -> None:
    """It is not one of no width: the table has the number alone."""
    one, two = measured("share", [0.9]), measured("share", iter((0.9, 0.9)))
    assert one == {"share": 0.9, "share_ci95": None}
    assert two == {"share": 0.9, "share_ci95": [0.9, 0.9]}
    assert [with_interval(row, "share") for row in (one, two)] == ["0.900", "0.900 ±0.000"]


def test_run_above_the_bound_is_a_violation() -> None:
    """It is listed with policy, seed and both numbers; one that equals the bound is not."""
    results = [result("a", 7, {"price": 0.9, "dqn": 0.8}, bound=0.8)]
    (row,) = violations(results)
    assert (row["policy"], row["seed"], row["performance"], row["bound"]) == ("price", 7, 0.9, 0.8)
