"""Intervals over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.statistics import interval

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_interval_is_students() -> None:
    """Three values: half width is 4.303 standard errors; one value has none."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert interval([5.0]).half == 0.0
