"""What a snapshot says about itself, as one flat table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from router.dqn.snapshot import SnapshotError, load_snapshot
from services.local.errors import InputError


def snapshot_facts(blob: bytes, origin: str) -> dict[str, Any]:
    """Returns a snapshot's facts by dotted name.

    Raises:
        InputError: It is damaged or no snapshot of this build.
    """
    try:
        snapshot = load_snapshot(blob, origin=origin)
    except SnapshotError as error:
        raise InputError(str(error)) from None
    weights = snapshot.weights
    parts = {
        "training": snapshot.training,
        "evaluation": snapshot.evaluation,
        "fleet": snapshot.fleet,
        "base": snapshot.base,
        "schedule": snapshot.schedule,
    }
    return {
        "policy": snapshot.policy,
        "policy_version": snapshot.version,
        "feature_schema": snapshot.feature_schema,
        "transition_count": snapshot.transition_count,
        "network.features": weights.feature_count,
        "network.hidden": weights.hidden_count,
        "network.norm": round(float(np.sqrt(sum(np.square(each).sum() for each in weights))), 4),
        **dict(_flat(parts)),
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested objects; a table of numbers is named by its size and a digest."""
    for name, each in value.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{name}.")
        elif isinstance(each, float):
            yield f"{prefix}{name}", float(f"{each:.6g}")
        elif name == "rows" and isinstance(each, list):
            digest = hashlib.sha256(json.dumps(each).encode()).hexdigest()[:8]
            yield f"{prefix}{name}", f"{len(each)} rows, digest {digest}"
        else:
            yield f"{prefix}{name}", each
