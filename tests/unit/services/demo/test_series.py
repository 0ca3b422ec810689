"""Time series of a run."""

from __future__ import annotations

import numpy as np
import pytest

from services.demo.series import make_series
from services.loadgen.records import run_summary
from tests.unit.services.demo.runs import TIERS, records


def test_series_count_every_request_once() -> None:
    """Bins add up to the run."""
    made = records()
    series = make_series(made, TIERS, bin_s=0.5)
    assert series.offered_rps.sum() * 0.5 == len(made)
    assert series.on_time_rps.sum() * 0.5 == run_summary(made)["total"]["on_time"]
    answered = sum(rates.sum() for rates in series.mix.values()) * 0.5
    assert answered == made.columns["answered"].sum()
    assert series.mix["medium"].sum() == 0
    assert np.nanmax(series.quality) == pytest.approx(0.8)
