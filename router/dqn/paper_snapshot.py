"""Snapshots of the paper's network: the same kind of file as `snapshot.py`, with its own layout."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from router.dqn.snapshot import (
    REASON_SCHEMA,
    REASON_SHAPE,
    SnapshotError,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from router.catalog import Catalog

POLICY: Final = "dqn-paper"
"""Name of the policy these snapshots belong to."""

FORMAT: Final = "tiercel-dqn-paper/1"
SCHEMA: Final = "dqn-paper/1"
"""Feature schema; which tasks and tiers it was trained for is in the feature names."""


class PaperWeights(NamedTuple):
    """The network's layers, float32. Shapes: [I, H], [H], [H, T], [T], with I = K + T + 1."""

    w1_IH: NDArray[np.float32]
    b1_H: NDArray[np.float32]
    w2_HT: NDArray[np.float32]
    b2_T: NDArray[np.float32]


@dataclass(frozen=True)
class PaperSnapshot:
    """The paper's network and where it comes from.

    Attributes:
        weights: the network.
        feature_names: its inputs, in order; they name the catalog it was trained for.
        version: content hash, set by `load_paper_snapshot`; empty on one never saved.
        training: training config and seed: JSON values only.
        evaluation: scores by name: JSON values only.
        fleet: the fleet it was trained for: JSON values only.
    """

    weights: PaperWeights
    feature_names: tuple[str, ...]
    version: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    fleet: Mapping[str, Any] = field(default_factory=dict)


def feature_names(catalog: Catalog) -> tuple[str, ...]:
    """Returns the network's inputs for a catalog: tasks, batch per tier, arrival rate."""
    tasks = tuple(f"task_{task.name}" for task in catalog.tasks)
    return (*tasks, *(f"batch_{tier}" for tier in catalog.tiers), "arrival_rate")


def flat(weights: PaperWeights) -> NDArray[np.float64]:
    """Returns the parameters of `paper.score_dqn_paper`: H, T, then W1, b1, W2, b2 by rows."""
    sizes = np.array(weights.w2_HT.shape, np.float64)
    return np.concatenate([sizes, *(np.asarray(part, np.float64).ravel() for part in weights)])


def save_paper_snapshot(snapshot: PaperSnapshot) -> bytes:
    """Returns the snapshot's file; the same content gives the same bytes and version.

    Raises:
        SnapshotError: shapes do not fit together.
    """
    _check(snapshot.weights, snapshot.feature_names, "snapshot")
    meta = {
        "format": FORMAT,
        "policy": POLICY,
        "feature_schema": SCHEMA,
        "feature_names": list(snapshot.feature_names),
        "training": dict(snapshot.training),
        "evaluation": dict(snapshot.evaluation),
        "fleet": dict(snapshot.fleet),
    }
    return pack(meta, snapshot.weights._asdict())


def load_paper_snapshot(
    blob: bytes, catalog: Catalog | None = None, origin: str = "snapshot"
) -> PaperSnapshot:
    """Reads and checks a snapshot of the paper's network.

    Args:
        blob: the file.
        catalog: tasks and tiers it must be for, or None to accept any.
        origin: its name, for messages.

    Raises:
        SnapshotError: with the reason why it was refused.
    """
    meta, tensors, version = unpack(blob, FORMAT, PaperWeights._fields, SCHEMA, origin)
    weights = PaperWeights(*(tensors[name] for name in PaperWeights._fields))
    names = tuple(meta["feature_names"])
    _check(weights, names, origin)
    if catalog is not None and names != feature_names(catalog):
        raise SnapshotError(
            REASON_SCHEMA,
            f"{origin}: is for {', '.join(names)}; the catalog has "
            f"{', '.join(feature_names(catalog))}",
        )
    return PaperSnapshot(
        weights, names, version, meta["training"], meta["evaluation"], meta["fleet"]
    )


def _check(weights: PaperWeights, names: tuple[str, ...], origin: str) -> None:
    hidden = weights.b1_H.shape[0] if weights.b1_H.ndim == 1 else -1
    tiers = weights.b2_T.shape[0] if weights.b2_T.ndim == 1 else -1
    expected = ((len(names), hidden), (hidden,), (hidden, tiers), (tiers,))
    for name, array, shape in zip(PaperWeights._fields, weights, expected, strict=True):
        if array.shape != shape or min(hidden, tiers) < 1:
            raise SnapshotError(
                REASON_SHAPE, f"{origin}: {name} has shape {array.shape}, not {shape}"
            )
