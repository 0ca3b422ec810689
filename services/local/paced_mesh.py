"""What a mesh of paced tiers is started with: every device serves every tier of the profile."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TypeVar

import pydantic

from router.catalog import parse_quality
from router.profile import parse_profile
from router.types import InvalidFileError
from services.common.files import read_text
from services.common.mesh_settings import TaskSettings
from services.local.embedded import MeshOptions
from services.local.errors import InputError
from services.local.fleets import PacedFleetOptions

Parsed = TypeVar("Parsed")

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
    try:
        tasks = tuple(
            TaskSettings(
                name=task,
                default_deadline_s=DEADLINE_S * time_scale,
                default_max_output_tokens=OUTPUT_TOKENS * 2,
                expected_output_tokens=OUTPUT_TOKENS,
            )
            for task in _read(quality, parse_quality).quality
        )
    except pydantic.ValidationError as error:
        # Of all it may say, that a name is none of a mesh, or that a deadline became too long.
        found = error.errors(include_url=False)[0]
        raise InputError(f"{quality}: {found['loc'][-1]}: {found['msg']}") from None
    return MeshOptions(
        name=name,
        fleet=PacedFleetOptions(profile, tiers, device_count, time_scale),
        profile=profile,
        quality=quality,
        tasks=tasks,
    )


def _tiers_of(profile: pathlib.Path) -> tuple[str, ...]:
    """Tiers of a profile, fastest (lowest quality) first."""
    tiers = _read(profile, parse_profile).tiers
    return tuple(sorted(tiers, key=lambda tier: tiers[tier].step_s))


def _read(path: pathlib.Path, parse: Callable[[str, str], Parsed]) -> Parsed:
    try:
        return parse(read_text(path), str(path))
    except InvalidFileError as error:
        raise InputError(f"{path}: {'; '.join(error.problems)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
