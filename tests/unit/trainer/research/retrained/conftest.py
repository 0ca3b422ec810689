"""The study that the tests of this folder look at."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.research.retrained.studies import task
from trainer.research.retrained.study import run_study


@pytest.fixture(scope="package")
def study() -> dict[str, Any]:
    """The study, computed once in this process."""
    return run_study(task())
