"""Baselines that stand in every table."""

from __future__ import annotations

import numpy as np
import pytest

from router.types import UnknownPolicyError
from tests.unit.trainer.evaluation import subjects
from trainer.evaluation.policies import baseline, baseline_names

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_tuned_variants_stand_beside_the_defaults() -> None:
    """A variant is the same kernel with the parameters tuning found, under a name of its own."""
    names = baseline_names(SETTING.catalog)
    assert names.index("price-tuned") == names.index("price") + 1
    default, tuned = (baseline(name, SETTING.catalog) for name in ("price", "price-tuned"))
    assert (tuned.spec.name, tuned.spec.policy) == ("price-tuned", default.spec.policy)
    assert not np.array_equal(tuned.spec.params_P, default.spec.params_P)
    with pytest.raises(UnknownPolicyError):
        baseline("round-robin-tuned", SETTING.catalog)
