"""The learner's ablation: its variants, what they switch off, its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.features import FEATURE_COUNT, FEATURES
from router.policies import price
from trainer.learning.network import initial_weights
from trainer.research import ablation
from trainer.research.ablation import GROUPS, SAMPLE_SETS, VARIANTS, Ablation, Budget, Variant

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

ROW: dict[str, Any] = {
    "name": "a",
    "gain": 0.0123,
    "gain_half": 0.001,
    "gains": {"steady": 0.02, "burst": -0.01},
    "availability": 0.98765,
}


def test_variants_name_what_there_is() -> None:
    """Groups of features and sets of samples exist, and no two variants share a name."""
    assert {name for group in GROUPS.values() for name in group} <= {f.name for f in FEATURES}
    assert {variant.without for variant in VARIANTS} == {"", *GROUPS}
    assert {variant.samples for variant in VARIANTS} == set(SAMPLE_SETS)
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_a_baseline_is_the_mean_of_its_task() -> None:
    """Each request is compared with the others of its task alone."""
    mean_N = ablation.episode_baseline(np.array([0, 1, 0]), np.array([1.0, 0.5, 0.0]))
    assert mean_N.tolist() == [0.5, 0.5, 0.5]
    assert len(ablation.episode_baseline(np.zeros(0, np.int64), np.zeros(0))) == 0


def test_the_table_has_points_and_intervals() -> None:
    """Gains are in points of performance, the whole one with its interval."""
    lines = ablation.markdown([ROW]).splitlines()
    assert lines[0] == "| variant | all | steady | burst | availability |"
    assert lines[2] == "| a | +1.23 ± 0.10 | +2.00 | -1.00 | 0.9877 |"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few scenarios, so that a variant takes seconds."""
    monkeypatch.setattr(ablation, "TEST_SEEDS", ablation.TEST_SEEDS[:1])


def test_words_choose_variants(small: None, tmp_path: Path) -> None:
    """Without table and fit nothing is gained but by the load as reckoned; both files are kept."""
    out, table = tmp_path / "rows.json", tmp_path / "rows.md"
    ablation.main(["load as reckoned", "--json", str(out), "--markdown", str(table)])
    (row,) = json.loads(out.read_text())
    assert row["name"] == "no search, load as reckoned"
    assert table.read_text() == ablation.markdown([row])


def test_a_variant_is_a_function_of_the_seed(small: None) -> None:
    """Fitted twice from one seed, by paired returns and by Double DQN, the gains are the same."""
    base_P = np.array([parameter.default for parameter in price.PARAMETERS])
    variant = Variant(name="both", prior="price", double=ablation.DOUBLE, hidden_count=4)

    def gains() -> dict[str, float]:
        budget = Budget(episodes=8, steps=20, requests=2000)
        study = Ablation(ablation.opt_mesh(), seed=3, budget=budget, base_P=base_P)
        found: dict[str, float] = study.run(variant)["gains"]
        return found

    assert gains() == gains()


def test_blinded_features_have_no_weight() -> None:
    """A group left out is read by neither layer, and the original is unchanged."""
    weights = initial_weights(FEATURE_COUNT, 4, np.random.default_rng(0))
    columns = ablation.columns_of("bands")
    blind = ablation.blind(weights, columns)
    assert not blind.w1_FH[columns].any()
    assert weights.w1_FH[columns].any()
    assert np.flatnonzero(~blind.w1_FH.any(axis=1)).tolist() == columns
