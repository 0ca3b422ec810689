"""A study of two shifts, small enough for a test."""

from __future__ import annotations

from typing import Any

import numpy as np

from router.dqn.snapshot import Snapshot, save_snapshot
from router.features import FEATURES, SCHEMA
from tests.unit.trainer.evaluation import subjects
from trainer.learning.offline.config import OfflineConfig
from trainer.learning.offline.correction import start_weights
from trainer.research.retrained.study import Task

SETTING = subjects.setting()


NAMES = tuple(feature.name for feature in FEATURES)


TINY = OfflineConfig(hidden_count=4, episodes_per_round=1, steps_per_round=5)


def snapshot() -> bytes:
    """Returns a policy that has learned nothing."""
    weights = start_weights(4, np.random.default_rng(0))
    return save_snapshot(Snapshot(weights, SCHEMA, NAMES))


def task(**changes: Any) -> Task:
    """Returns a study of two shifts in a few rounds."""
    values: dict[str, Any] = {
        "snapshot": snapshot(),
        "setting": SETTING,
        "quality": subjects.QUALITY,
        "plan": subjects.PLAN,
        "rounds": 6,
        "shifts": ("task hard", "2 routers, stale"),
        "config": TINY,
    }
    return Task(**{**values, **changes})
