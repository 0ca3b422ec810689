"""The policies that the settings name, and what is wrong with them as mistakes of the settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from router.catalog import Catalog
from router.dqn.snapshot import MAX_SNAPSHOT_BYTES, SnapshotError
from router.policies.base import PolicyParameterError
from router.policies.table import MissingSnapshotError
from router.types import UnknownPolicyError
from services.common.files import read_bytes
from services.common.settings import SettingsError
from services.router_inference.settings import RouterInferenceSettings


class Configured(TypedDict):
    """What `PolicySlot` takes of the settings."""

    catalog: Catalog
    parameters: Mapping[str, Mapping[str, float]]
    policy: str
    fallback: str
    snapshot: bytes


def configured(own: RouterInferenceSettings, catalog: Catalog) -> Configured:
    """Returns them; raises SettingsError if the snapshot's file cannot be read."""
    path = own.policy_snapshot
    try:
        snapshot = read_bytes(Path(path), MAX_SNAPSHOT_BYTES) if path else b""
    except OSError as error:
        problem = f"router_inference.policy_snapshot: {path}: {error.strerror or error}"
        raise SettingsError([problem]) from None
    return Configured(
        catalog=catalog,
        parameters=own.policy_parameters,
        policy=own.policy,
        fallback=own.fallback_policy,
        snapshot=snapshot,
    )


@contextmanager
def as_settings_errors(own: RouterInferenceSettings) -> Iterator[None]:
    """Turns what `PolicySlot` raises for these settings into a SettingsError."""
    try:
        yield
    except (UnknownPolicyError, PolicyParameterError, MissingSnapshotError) as error:
        raise SettingsError([f"router_inference: policy or fallback_policy: {error}"]) from None
    except SnapshotError as error:
        problem = f"router_inference.policy_snapshot: {own.policy_snapshot}: {error}"
        raise SettingsError([problem]) from None
