"""The highest rate a policy holds."""

from __future__ import annotations

import pytest

from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.simulation.settings import spec
from trainer.evaluation.hold import bracket_rps, highest_held_rps, holds

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_highest_held_rate_is_between_holding_and_not() -> None:
    """Static-large holds the rate found, and no longer 1.3 times it."""
    policy = spec("static-large")
    low, high = bracket_rps(SETTING, policy, 40.0, [1], 5.0, safety=False)
    held = highest_held_rps(
        SETTING, policy, low_rps=low, high_rps=high, seeds=[1], duration_s=5.0, safety=False
    )
    assert high == pytest.approx(2.0 * low)
    assert low <= held < high
    assert holds(SETTING, policy, 0.9 * held, [2], 5.0, safety=False)
    assert not holds(SETTING, policy, 1.3 * held, [2], 5.0, safety=False)


def test_no_bracket_where_nothing_is_held() -> None:
    """A search ends even if no rate is held."""
    short = subjects.setting(deadline_s=0.001)
    assert bracket_rps(short, spec("static-large"), 10.0, [1], 1.5, safety=False) == (0.0, 0.0)
