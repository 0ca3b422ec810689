"""Shifted hardware."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.shifts import shifted_settings, shifts_of

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_lost_device_is_gone_for_good_and_its_hardware_has_one_less() -> None:
    """The loss is inside the run; always-small's limit is that of the smaller fleet."""
    settings = shifted_settings(SETTING)
    shift = next(s for s in shifts_of(settings) if s.lost)
    (event,) = shift.events(9.0)
    assert event.kind == "lost"
    assert event.time_s == pytest.approx(3.0)
    available_C = settings[shift.hardware].fleet.arrays.availability_C
    assert available_C.sum() == SETTING.fleet.candidate_count / 2


def test_slower_hardware_is_slower_and_routers_know_it_only_where_said() -> None:
    """True costs are 1.3 times the profile's; what routers believe is either."""
    settings = shifted_settings(SETTING)
    believed = SETTING.fleet.arrays.step_s_C
    assert settings["slower"].profiles[""].tiers["large"].step_s == pytest.approx(1.3 * 0.0105)
    np.testing.assert_array_equal(settings["slower"].fleet.arrays.step_s_C, believed)
    known = settings["slower, known"].fleet.arrays.step_s_C
    np.testing.assert_allclose(known, 1.3 * believed)
