"""Settings of load-monitor: the `[load_monitor]` section beside `[mesh]` and `[log]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from services.common.addresses import ListenAddress, OptionalListenAddress
from services.common.log import LogSettings
from services.common.mesh_settings import MeshSettings
from services.common.server import ServerSettings
from services.common.settings import Problem, SettingsModel


class LoadMonitorSettings(ServerSettings):
    """The `[load_monitor]` section."""

    listen: ListenAddress = "127.0.0.1:7411"
    """gRPC address; port 0 takes any free one."""
    operate_listen: ListenAddress = "127.0.0.1:7421"
    """gRPC address of operating calls, used where callers are authenticated or `listen` is not
    loopback; elsewhere they are served at `listen`."""
    metrics_listen: OptionalListenAddress = "127.0.0.1:9411"
    """Address of the Prometheus metrics and, at `/`, of a page for people; empty means neither."""
    monitor_id: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    """Name of the process; empty means one of its own, made of host name, process id and chance."""
    shared_router_certificate: bool = False
    """True lets routers share a certificate that names none of them, as replicas do.

    Each of them may then report as any router that does not report yet.
    """
    publish_interval_s: float = Field(default=0.08, ge=0.01, le=1.0)
    """Least time between two states, seconds; a change is published that soon."""
    idle_publish_interval_s: float = Field(default=1.0, ge=0.1, le=60.0)
    """Longest time between two states, seconds, if nothing changes."""
    router_silence_s: float = Field(default=3.0, gt=0.0, le=300.0)
    """A router that has not reported for this long is forgotten, seconds."""
    max_routers: int = Field(default=1_000, ge=1, le=100_000)
    """Most routers kept; reports of more are refused."""
    max_watchers: int = Field(default=1_000, ge=1, le=100_000)
    """Most WatchSystemState calls at a time; more are refused."""
    max_endpoints: int = Field(default=1_000, ge=1, le=100_000)
    """Most endpoints; AddEndpoint refuses more."""
    gauge_interval_s: float = Field(default=0.2, ge=0.1, le=60.0)
    """Time between two readings of an endpoint's load gauges, seconds."""
    ready_interval_s: float = Field(default=1.0, ge=0.1, le=60.0)
    """Time between two checks of an endpoint's readiness, seconds."""
    probe_timeout_s: float = Field(default=1.0, gt=0.0, le=30.0)
    """Longest time one call of a probe may take, seconds."""
    down_after_failures: int = Field(default=2, ge=1, le=100)
    """Failed checks in a row after which an endpoint or a tier counts as not usable."""
    up_after_successes: int = Field(default=2, ge=1, le=100)
    """Good checks in a row after which it counts as usable again."""
    ramp_s: float = Field(default=5.0, ge=0.0, le=600.0)
    """Time over which an endpoint that came back is given its normal share, seconds."""
    ramp_start_weight: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share it starts with."""
    lease_ttl_s: float = Field(default=2.0, ge=0.5, le=60.0)
    """Time after which another monitor takes over from one that is gone, seconds."""
    redis_timeout_s: float = Field(default=0.5, gt=0.0, le=10.0)
    """Longest time one Redis call may take, seconds."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields intervals that contradict each other."""
        yield from super().cross_problems(raw, base_dir)
        shortest = raw.get("publish_interval_s", cls.model_fields["publish_interval_s"].default)
        key = "idle_publish_interval_s"
        longest = raw.get(key, cls.model_fields[key].default)
        if _is_number(shortest) and _is_number(longest) and longest < shortest:
            yield Problem((key,), "must not be below publish_interval_s", longest)


class Settings(SettingsModel):
    """What the process reads of the mesh's file."""

    mesh: MeshSettings
    load_monitor: LoadMonitorSettings = LoadMonitorSettings()
    log: LogSettings = LogSettings()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
