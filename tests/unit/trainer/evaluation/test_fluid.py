"""The fluid reference, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.router import fleets
from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.fluid import fluid_reference
from trainer.simulation.setting import shared_fleet_setting
from trainer.simulation.workload import Lengths

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_reference_is_peak_when_large_can_carry_all() -> None:
    """At a low rate the best mix is the large tier alone."""
    assert fluid_reference(SETTING, 20.0, grid=6) == pytest.approx(1.0)


def test_reference_falls_with_the_rate_to_nothing() -> None:
    """More traffic never raises it; far beyond capacity hardly anything is served."""
    values = [fluid_reference(SETTING, rate, grid=6) for rate in (50.0, 400.0, 1e5)]
    assert (np.diff(values) <= 1e-9).all()
    assert values[-1] < 0.05


def test_reference_of_one_full_device_is_worked_out_by_hand() -> None:
    """With one tier the optimum serves the share its best cycle can carry."""
    setting = shared_fleet_setting(
        "one",
        fleets.profile(),
        subjects.QUALITY,
        tiers=("large",),
        device_count=1,
        lengths=Lengths(prompt_median=100.0, prompt_sigma=0.0),
    )
    tier = fleets.profile().tiers["large"]
    cycle_s = (0.4 - 100 * tier.per_prompt_token_s) / 8
    each_s = 100 * tier.per_prompt_token_s + 8 * tier.per_sequence_s
    capacity = (cycle_s - tier.step_s) / cycle_s / each_s
    assert fluid_reference(setting, 4 * capacity) == pytest.approx(0.25, rel=1e-3)
