"""What a mesh of paced tiers is started with: every device serves every tier of the profile."""

from __future__ import annotations

import pathlib
from typing import Any

from router.documents import parse_toml
from router.types import InvalidFileError
from services.common.files import read_text
from services.common.mesh_settings import TaskSettings
from services.local.embedded import MeshOptions
from services.local.errors import InputError
from services.local.fleets import PacedFleetOptions

DEADLINE_S = 0.4
OUTPUT_TOKENS = 8


def paced_options(
    name: str,
    profile: pathlib.Path,
    *,
    quality: pathlib.Path,
    device_count: int = 1,
    time_scale: float = 1.0,
) -> MeshOptions:
    """Returns the options of a mesh of paced tiers.

    Args:
        name: Name of the mesh.
        profile: Latency profile that times the tiers.
        quality: Quality table; its tasks are the mesh's.
        device_count: Devices.
        time_scale: Factor on every time, deadlines included.

    Raises:
        InputError: A file cannot be read or lacks its table, or the scale is not above 0.
    """
    if not time_scale > 0:
        raise InputError(f"--time-scale: must be above 0, got {time_scale:g}")
    tiers = _tiers_of(profile)
    tasks = tuple(
        TaskSettings(
            name=task,
            default_deadline_s=DEADLINE_S * time_scale,
            default_max_output_tokens=OUTPUT_TOKENS * 2,
            expected_output_tokens=OUTPUT_TOKENS,
        )
        for task in _tasks_of(quality)
    )
    return MeshOptions(
        name=name,
        fleet=PacedFleetOptions(profile, tiers, device_count, time_scale),
        profile=profile,
        quality=quality,
        tasks=tasks,
    )


def _tiers_of(profile: pathlib.Path) -> tuple[str, ...]:
    """Tiers of a profile, fastest (lowest quality) first."""
    tiers = _read(profile).get("tiers", {})
    if not isinstance(tiers, dict) or not tiers:
        raise InputError(f"{profile}: has no [tiers.NAME] table")
    return tuple(sorted(tiers, key=lambda tier: float(tiers[tier].get("step_s", 0.0))))


def _tasks_of(quality: pathlib.Path) -> tuple[str, ...]:
    tasks = _read(quality).get("quality", {})
    if not isinstance(tasks, dict) or not tasks:
        raise InputError(f"{quality}: has no [quality.TASK] table")
    return tuple(tasks)


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return parse_toml(read_text(path), str(path))
    except (OSError, UnicodeDecodeError, InvalidFileError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
