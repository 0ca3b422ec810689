"""The learned policy that a mesh of this machine starts with, where one was trained for it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES, Snapshot, SnapshotError, load_snapshot
from router.features import SCHEMA
from router.folders import state_folder
from router.policies.table import DQN, base_name
from router.profile import parse_profile
from router.types import InvalidFileError, is_finite_number
from services.common.files import read_bytes, read_text
from trainer.shipped import POLICIES, SNAPSHOT_SUFFIX, named

BASELINE: Final = "price"
"""What a mesh starts with where no learned policy fits, and what such a policy has to match."""
TRAINED: Final = ("train", f"policy{SNAPSHOT_SUFFIX}")
"""Where `tiercel train` writes its snapshot, below the state folder, if not told otherwise."""
_AVAILABILITY_LOSS = 0.005
"""Share of requests that it may answer late, more than price does, and still be used."""


@dataclasses.dataclass(frozen=True, slots=True)
class StartPolicy:
    """What routers start with.

    Attributes:
        name: Name of the policy.
        snapshot: File of its snapshot; None: it needs none.
        reason: Why, for people.
    """

    name: str
    snapshot: pathlib.Path | None
    reason: str


def start_policy(profile: pathlib.Path, tiers: Sequence[str], asked: str = "") -> StartPolicy:
    """Returns what was asked for; else the learned policy where a snapshot fits; else price.

    A snapshot fits if it can be read, was trained for a profile of that name and for those tiers,
    and was no worse than price when its training judged it. One trained on this machine comes
    before one that is shipped.

    Args:
        profile: File of the latency profile.
        tiers: Names of the tiers, fastest first.
        asked: Name of a policy; the learned one gets the snapshot that fits, if there is one.
    """
    if asked and base_name(asked) != DQN:
        return StartPolicy(asked, None, "")
    fitting = _fitting(profile, tiers)
    return dataclasses.replace(fitting, name=asked) if asked else fitting


def _fitting(profile: pathlib.Path, tiers: Sequence[str]) -> StartPolicy:
    try:
        name = parse_profile(read_text(profile), str(profile)).name
    except (OSError, UnicodeDecodeError, InvalidFileError):
        # Who reads it next says what is wrong with it.
        return StartPolicy(BASELINE, None, f"the profile {profile} cannot be read")
    found = [("trained here", state_folder(*TRAINED)), ("shipped", named(POLICIES, name))]
    refused = []
    for origin, path in found:
        if not path.is_file():
            continue
        try:
            snapshot = load_snapshot(read_bytes(path, MAX_SNAPSHOT_BYTES), SCHEMA, str(path))
        except (OSError, SnapshotError) as error:
            refused.append(f"{path}: {error}")
            continue
        problem = _misfit(snapshot, name, tiers)
        if not problem:
            return StartPolicy(DQN, path, f"version {snapshot.version}, {origin} for {name}")
        refused.append(f"{path}: {problem}")
    reason = "; ".join(refused) or f"no snapshot is trained for {name}"
    return StartPolicy(BASELINE, None, reason)


def _misfit(snapshot: Snapshot, profile: str, tiers: Sequence[str]) -> str:
    """Returns why a snapshot is not for that mesh; empty if it is."""
    if snapshot.policy != DQN:
        return f"it is of {snapshot.policy}"
    if snapshot.fleet.get("profile") != profile:
        return f"it was trained for {snapshot.fleet.get('profile')}, not for {profile}"
    if snapshot.fleet.get("tiers") != list(tiers):
        return f"it was trained for other tiers than {', '.join(tiers)}"
    if _is_worse(snapshot.evaluation):
        return f"its training found it worse than {BASELINE}"
    return ""


def _is_worse(evaluation: Mapping[str, Any]) -> bool:
    """Whether the training's own judgement has it below price, where it judged at all."""
    baselines = evaluation.get("baselines")
    price = baselines.get(BASELINE) if isinstance(baselines, Mapping) else None
    if not isinstance(price, Mapping):
        return False

    def gain(score: str) -> float:
        """What it is above price; 0 where one of both is no number."""
        own, other = evaluation.get(score), price.get(score)
        if not (is_finite_number(own) and is_finite_number(other)):
            return 0.0
        return float(own) - float(other)

    return gain("performance") < 0.0 or gain("availability") < -_AVAILABILITY_LOSS
