"""Arrival processes of the protocol."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.evaluation.scenarios import SCENARIOS

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_arrivals_have_the_rate_they_are_asked_for(name: str) -> None:
    """A load means the same whatever the arrival process."""
    rng = np.random.default_rng(3)
    counts = [len(SCENARIOS[name].make(200.0, 400.0, rng)) for _ in range(4)]
    assert np.mean(counts) == pytest.approx(200.0 * 400.0, rel=0.08)
