"""Writes the settings file of an embedded mesh."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w


@dataclasses.dataclass(frozen=True, slots=True)
class TaskEntry:
    """A ``[[mesh.tasks]]`` entry.

    Attributes:
        name: Its name.
        default_deadline_s: Deadline of requests that bring none.
        default_max_output_tokens: Limit of output tokens of requests that bring none.
        expected_output_tokens: Prior of the output-length predictor.
    """

    name: str
    default_deadline_s: float
    default_max_output_tokens: int
    expected_output_tokens: float


@dataclasses.dataclass(frozen=True, slots=True)
class EndpointEntry:
    """A ``[[mesh.endpoints]]`` entry; see ``services.common.mesh_config``."""

    name: str
    address: str
    device: str
    tiers: tuple[str, ...]
    models: Mapping[str, str]
    metrics_address: str


def settings_text(
    *,
    name: str,
    tiers: Sequence[str],
    profile: pathlib.Path,
    quality: pathlib.Path,
    addresses: Mapping[str, str],
    tasks: Sequence[TaskEntry],
    endpoints: Sequence[EndpointEntry],
    sections: Mapping[str, Mapping[str, Any]],
) -> str:
    """Makes the TOML text.

    Args:
        name: Name of the mesh.
        tiers: Tier names, lowest quality first.
        profile: Latency profile; relative to the settings file, or absolute.
        quality: Quality table; the same.
        addresses: ``redis``, ``load_monitor`` and ``trainer``; a missing one means none.
        tasks: Classes of requests.
        endpoints: Triton endpoints.
        sections: Further sections by name, for instance ``router_inference``.
    """
    redis = addresses.get("redis", "")
    mesh = {
        "name": name,
        "tiers": list(tiers),
        "profile": str(profile),
        "quality": str(quality),
        "redis_url": f"redis://{redis}/0" if redis else "",
        "load_monitor_address": addresses.get("load_monitor", ""),
        "trainer_address": addresses.get("trainer", ""),
    }
    document: dict[str, Any] = {
        "mesh": mesh
        | {
            "tasks": [dataclasses.asdict(task) for task in tasks],
            "endpoints": [dataclasses.asdict(endpoint) for endpoint in endpoints],
        },
        **sections,
    }
    return f"# Written by `tiercel up`; changed at its next start.\n{tomli_w.dumps(document)}"
