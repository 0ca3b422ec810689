"""Fixtures that start real servers for integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from services.common.state.redis_connection import RedisConnection
from services.local.triton.repository.paced import (
    PacedFleet,
    PacedRepository,
    write_paced_repository,
)
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.conftest import RedisServer
from tests.fakes.http_tier import HttpTier, http_tier
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")
DEVICES = 2


@dataclass(frozen=True)
class PacedTriton:
    """A running Triton with paced tiers small, medium, large on devices gpu0 and gpu1.

    Attributes:
        server: The process.
        repository: What it serves; injects faults with `set_device`.
        profile: Latency profile file of all tiers.
    """

    server: TritonServer
    repository: PacedRepository
    profile: Path

    @property
    def address(self) -> str:
        """Where its gRPC listens."""
        return self.server.grpc_address

    @property
    def endpoints(self) -> list[dict[str, Any]]:
        """`[[mesh.endpoints]]` entries, one per device."""
        [server] = self.repository.servers
        return server.endpoints(self.server.grpc_address, self.server.metrics_address)


@pytest.fixture
async def two_tiers() -> AsyncIterator[tuple[HttpTier, HttpTier]]:
    """Two servers that answer as Triton does."""
    async with http_tier() as first, http_tier() as second:
        yield first, second


@pytest.fixture
async def redis_connection(redis_server: RedisServer) -> AsyncIterator[RedisConnection]:
    """A connection to an empty Redis."""
    # Long, as no test of this fixture is about the time that Redis takes.
    connection = RedisConnection(redis_server.url, timeout_s=10.0)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def paced_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PacedTriton]:
    """A real Triton with two paced devices of three tiers, profile opt-a100, for the whole run.

    Tests that inject a fault must heal the device again.
    """
    profile = ROOT / "profiles" / "opt-a100.toml"
    directory = tmp_path_factory.mktemp("paced")
    fleet = PacedFleet(profile=profile, tiers=TIERS, device_count=DEVICES)
    repository = write_paced_repository(directory / "fleet", fleet)
    config = TritonServerConfig(
        repository=repository.servers[0].path, log_path=directory / "triton.log"
    )
    with TritonServer(config) as server:
        yield PacedTriton(server, repository, profile)
