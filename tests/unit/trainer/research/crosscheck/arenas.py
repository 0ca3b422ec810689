"""An arena small enough for a test, and what runs in it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.trainer.simulation.settings import config
from trainer.research.crosscheck import library
from trainer.research.crosscheck.arena import Arena
from trainer.research.crosscheck.own import TrainingPlan
from trainer.simulation.setting import Setting

needs_library = pytest.mark.skipif(
    not library.is_installed(), reason="stable-baselines3 is not installed (extra: crosscheck)"
)


SMALL_PLAN = TrainingPlan(200, warm_up_steps=100, batch_size=16)


def arena(**changes: float) -> Arena:
    """Returns one device of the test fleet, with short episodes."""
    made = config(1)
    setting = Setting("test", made.catalog, made.fleet, made.profiles)
    rates = {"low_rps": 20.0, "high_rps": 60.0} | changes
    return Arena(setting, rates["low_rps"], rates["high_rps"], episode_requests=60)


def last(_: object, allowed_C: NDArray[np.int8]) -> int:
    """Chooses the last candidate: the largest tier."""
    return len(allowed_C) - 1
