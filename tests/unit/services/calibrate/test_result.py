"""A calibration as a file and as a check."""

from __future__ import annotations

import pytest

from router.profile import TierProfile, parse_profile
from services.calibrate.result import Calibration, PairCheck
from trainer.profiling.latency_fit import Fit


def fit_of(step_s: float) -> Fit:
    """A fit with this step cost."""
    return Fit(TierProfile(step_s, 0.0, 0.0), 10, 0.05, 0.01, 0.1)


def test_a_calibration_is_a_profile_file() -> None:
    """What is written is what the services read."""
    from router.profile import LatencyProfile

    fits = {"small": fit_of(0.001), "large": fit_of(0.002)}
    profiles = {name: fit.profile for name, fit in fits.items()}
    measured = Calibration(
        LatencyProfile("reference", "measured", profiles, 'a "quoted" card'),
        fits,
        (),
        unloaded_p50_s={},
        unloaded_p95_s={},
        misfits={},
        bytes_per_token={},
        remarks=(),
        took_s=1.0,
    )
    parsed = parse_profile(measured.to_toml(), "test", ("small", "large"))
    assert parsed.tiers["large"].step_s == 0.002
    assert parsed.source == "measured"


def test_a_pair_is_judged_by_its_worse_tier() -> None:
    """The largest relative error of the two counts."""
    assert PairCheck(("a", "b"), (0.1, 0.2), (0.11, 0.3)).error == pytest.approx(0.5)
