"""Snapshots of the paper's policy: there and back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from router.dqn.paper_snapshot import (
    PaperSnapshot,
    PaperWeights,
    feature_names,
    flat,
    load_paper_snapshot,
    save_paper_snapshot,
)
from router.dqn.snapshot import REASON_FORMAT, REASON_SCHEMA, REASON_SHAPE, SnapshotError
from router.policies import table
from tests.unit.router import fleets

CATALOG = fleets.catalog()


def weights(seed: int = 0, hidden: int = 5) -> PaperWeights:
    """Returns random layers for two tasks and three tiers."""
    rng = np.random.default_rng(seed)
    shapes = ((6, hidden), (hidden,), (hidden, 3), (3,))
    return PaperWeights(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def snapshot(seed: int = 0) -> PaperSnapshot:
    """Returns a snapshot for the test catalog."""
    return PaperSnapshot(weights(seed), feature_names(CATALOG), training={"seed": seed})


def test_snapshot_survives_its_file() -> None:
    """Weights, names and notes come back as they were, with a version."""
    loaded = load_paper_snapshot(save_paper_snapshot(snapshot()), CATALOG)
    np.testing.assert_array_equal(flat(loaded.weights), flat(snapshot().weights))
    assert loaded.feature_names == feature_names(CATALOG)
    assert loaded.training == {"seed": 0}
    policy = table.make_policy("dqn-paper", CATALOG, snapshot=loaded)
    assert policy.version == loaded.version != ""


def test_snapshot_of_another_catalog_is_refused() -> None:
    """The network's inputs are this catalog's tasks and tiers, or it must not decide."""
    names = ("task_other", *feature_names(CATALOG)[1:])
    blob = save_paper_snapshot(PaperSnapshot(weights(), names))
    with pytest.raises(SnapshotError, match="task_other") as caught:
        load_paper_snapshot(blob, CATALOG)
    assert caught.value.reason == REASON_SCHEMA


def test_snapshot_of_another_kind_is_refused() -> None:
    """A file of the candidate network is not read as the paper's."""
    from router.dqn.snapshot import Snapshot, save_snapshot, zero_weights

    blob = save_snapshot(Snapshot(zero_weights(1, 1), "s", ("a",)))
    with pytest.raises(SnapshotError) as caught:
        load_paper_snapshot(blob)
    assert caught.value.reason == REASON_FORMAT


def test_snapshot_whose_layers_do_not_fit_is_refused() -> None:
    """A layer of another width is named with its shape."""
    broken = weights()._replace(b1_H=np.zeros(4, np.float32))
    with pytest.raises(SnapshotError, match="w1_IH") as caught:
        save_paper_snapshot(PaperSnapshot(broken, feature_names(CATALOG)))
    assert caught.value.reason == REASON_SHAPE
