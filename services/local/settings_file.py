"""Writes settings files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from services.common.mesh_settings import EndpointSettings, TaskSettings


def settings_text(
    *,
    name: str,
    tiers: Sequence[str],
    profile: pathlib.Path,
    quality: pathlib.Path,
    addresses: Mapping[str, str],
    tasks: Sequence[TaskSettings],
    endpoints: Sequence[EndpointSettings],
    sections: Mapping[str, Mapping[str, Any]],
    head: Sequence[str] = ("Written by `tiercel up`; changed at its next start.",),
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
        head: Lines of comment before everything.
    """
    redis = addresses.get("redis", "")
    where = {
        "redis_url": f"redis://{redis}/0" if redis else "",
        "load_monitor_address": addresses.get("load_monitor", ""),
        "trainer_address": addresses.get("trainer", ""),
    }
    mesh = {
        "name": name,
        "tiers": list(tiers),
        "profile": str(profile),
        "quality": str(quality),
        **{key: address for key, address in where.items() if address},
    }
    document: dict[str, Any] = {
        "mesh": mesh
        | {
            "tasks": [task.model_dump(exclude_defaults=True) for task in tasks],
            "endpoints": [endpoint.model_dump(exclude_defaults=True) for endpoint in endpoints],
        },
        **sections,
    }
    comment = "".join(f"# {line}\n" for line in head)
    return f"{comment}\n{tomli_w.dumps(document)}"
