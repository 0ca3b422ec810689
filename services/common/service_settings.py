"""Keys that every service's section has, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field

from services.common.addresses import ListenAddress, OptionalListenAddress, parse_address
from services.common.settings import Problem, SettingsModel


class ServiceSettings(SettingsModel):
    """Where a service listens, who may reach it, and how it stops."""

    listen: ListenAddress
    """Address that it serves at; port 0 takes any free one."""
    metrics_listen: OptionalListenAddress
    """Prometheus address; empty means no metrics are served."""
    insecure_open_to_network: bool = False
    """True serves whoever reaches its addresses, without TLS or authentication, and calls other
    machines in plain text."""
    metrics_open_to_network: bool = False
    """True serves metrics to whoever reaches `metrics_listen`; they are served in plain text."""
    lame_duck_s: float = Field(default=1.0, ge=0.0, le=300.0)
    """Time between NOT_SERVING and refusing new calls at a stop, seconds."""
    grace_s: float = Field(default=10.0, ge=0.0, le=600.0)
    """Time running calls get to end at a stop, seconds."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields a metrics address that other machines could reach without leave.

        What `listen` needs is told where certificates and keys are read.
        """
        yield from super().cross_problems(raw, base_dir)
        text = raw.get("metrics_listen")
        if raw.get("metrics_open_to_network") is True or not isinstance(text, str) or not text:
            return
        with suppress(ValueError):  # which the field's own check reports
            if not parse_address(text, allow_port_zero=True).is_loopback:
                problem = "other machines can reach it; metrics_open_to_network = true allows that"
                yield Problem(("metrics_listen",), problem, text)
