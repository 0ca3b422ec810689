"""A Triton endpoint for the prober, made of switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common.tiers.errors import TierUnavailableError


@dataclass(frozen=True)
class FakeCounters:
    """Counters of one model."""

    success_count: int = 0
    fail_count: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0


@dataclass(frozen=True)
class FakeConfig:
    """Configuration of one model."""

    kind: str


class FakeProbeClient:
    """Answers as its attributes say, and counts the calls."""

    def __init__(self) -> None:
        self.live = True
        self.ready: dict[str, bool] = {}
        self.counters: dict[str, FakeCounters] = {}
        self.kind = "paced"
        self.statistics_count = 0
        self.ready_count = 0
        self.config_count = 0
        self.closed = False
        self.error: Exception | None = None

    async def is_live(self) -> bool:
        """Returns the switch."""
        return self.live

    async def is_ready(self, model: str = "") -> bool:
        """Returns the model's switch, true by default."""
        self.ready_count += 1
        return self.live and self.ready.get(model, True)

    async def statistics(self, model: str = "") -> Mapping[str, FakeCounters]:
        """Returns the counters, or fails."""
        self.statistics_count += 1
        if self.error is not None:
            raise self.error
        if not self.live:
            raise TierUnavailableError("UNAVAILABLE", "connection refused")
        return self.counters

    async def model_config(self, model: str) -> FakeConfig:
        """Returns the kind, or fails."""
        self.config_count += 1
        if not self.live:
            raise TierUnavailableError("UNAVAILABLE", "connection refused")
        return FakeConfig(self.kind)

    async def close(self) -> None:
        """Notes it."""
        self.closed = True
