"""Routers to measure: their settings, and a router process on them."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from services.bench.bench import Bench, Server
from services.common.mesh_settings import EndpointSettings, TaskSettings
from services.local.settings_file import settings_text
from trainer.shipped import POLICIES, PROFILES, QUALITY, shipped

TIERS = ("small", "medium", "large")
TASKS = ("hellaswag", "piqa", "copa", "openbookqa")
TASK = "piqa"
PROFILE = "opt-a100"
DEADLINE_S = 5.0
LEARNED: Mapping[str, Any] = {
    "policy": "dqn",
    "policy_snapshot": str(shipped(POLICIES, f"{PROFILE}.safetensors")),
}
"""Settings of a router that decides by the shipped snapshot."""


def write_settings(
    path: pathlib.Path,
    addresses: Sequence[str],
    own: Mapping[str, Any],
    *,
    monitor: str = "",
    monitor_own: Mapping[str, Any] | None = None,
    deadline_s: float = DEADLINE_S,
    has_http: bool = False,
    endpoint: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes the settings file of a router; returns its path.

    Args:
        path: Where to.
        addresses: Address of each endpoint; each has a device with every tier of its own.
        own: Keys of [router_inference] beside those every bench has.
        monitor: Address of the load monitor; empty for none.
        monitor_own: Keys of [load_monitor].
        deadline_s: Default deadline of every task, seconds.
        has_http: True lets gateways reach the endpoints, by the same addresses.
        endpoint: Further keys of every endpoint.
    """
    text = settings_text(
        name="bench",
        tiers=TIERS,
        profile=shipped(PROFILES, f"{PROFILE}.toml"),
        quality=shipped(QUALITY, "opt.toml"),
        addresses={"load_monitor": monitor} if monitor else {},
        tasks=[TaskSettings(name=name, default_deadline_s=deadline_s) for name in TASKS],
        endpoints=[
            EndpointSettings(
                name=f"e{index}",
                address=address,
                tiers=TIERS,
                **{"http_address": address if has_http else "", **(endpoint or {})},
            )
            for index, address in enumerate(addresses)
        ],
        sections={
            "router_inference": {
                "listen": "127.0.0.1:0",
                "metrics_listen": "127.0.0.1:0",
                "lame_duck_s": 0.0,
                "grace_s": 1.0,
                "lease_s": 1.0,
                "max_leases_per_client": 65_536,
                **own,
            },
            "load_monitor": monitor_own or {},
        },
    )
    path.write_text(text, encoding="utf-8")
    return path


async def start_router(
    bench: Bench,
    name: str,
    addresses: Sequence[str],
    *,
    own: Mapping[str, Any],
    traces: str = "",
    cores: Sequence[int] = (),
    has_http: bool = False,
    endpoint: Mapping[str, Any] | None = None,
) -> Server:
    """Starts a router in front of endpoints; with `traces`, telemetry goes there."""
    path = bench.folder / f"{name}.toml"
    config = write_settings(path, addresses, own, has_http=has_http, endpoint=endpoint)
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{traces}"} if traces else {}
    variables |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"} if traces else {}
    module = "services.router_inference"
    return await bench.start(
        name, module, "--config", str(config), cores=cores, variables=variables
    )
