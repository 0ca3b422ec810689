"""What a service sends to other machines: by TLS, or not at all unless a setting says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from services.common.addresses import parse_address, without_password
from services.common.mesh_settings import MeshSettings
from services.common.settings import SettingsError

LEAVE = "insecure_open_to_network"
"""The key of a service's section that lets it do without TLS."""
_REDIS_BY_TLS = "rediss"


class Refusal(NamedTuple):
    """What is wrong with an address, and what is allowed in its place."""

    problem: str
    allowed: str


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Where one service may send prompts, and what else others must not read.

    Attributes:
        section: Its section, for messages.
        mesh: The mesh whose addresses it calls.
        is_open: Whether its section gives leave to do without TLS.
    """

    section: str
    mesh: MeshSettings
    is_open: bool

    def may_be_endpoint(self, address: str) -> bool:
        """Returns whether prompts may be sent to an address: it is an endpoint's, and by TLS."""
        return self.mesh.may_be_endpoint(address) and not self.is_readable(address)

    def refusal(self, field: str, address: str) -> Refusal | None:
        """Returns why an endpoint that would join may not have an address; None if it may.

        Args:
            field: Which of its addresses: `address`, where prompts go, `metrics_address`, or
                `http_address`, which gateways call.
            address: `host:port`.
        """
        if not self.mesh.may_be_endpoint(address):
            allowed = "mesh.endpoint_addresses of the settings"
            return Refusal("is no address of this mesh's endpoints", allowed)
        if field == "address" and self.is_readable(address):
            problem = f"{address} is on another machine, where prompts would go in plain text"
            return Refusal(problem, f"loopback, {self.needed}, or {self.instead}")
        return None

    def is_readable(self, address: str) -> bool:
        """Returns whether prompts to an address could be read on their way, and may not be."""
        tls = self.mesh.tls
        has_tls = bool(tls.certificate) and tls.triton
        return not (self.is_open or has_tls or _is_local(address))

    @property
    def needed(self) -> str:
        """What an endpoint on another machine needs."""
        tls = self.mesh.tls
        return "TLS (mesh.tls.triton = true)" if tls.certificate else "TLS ([mesh.tls])"

    @property
    def instead(self) -> str:
        """What lets prompts go in plain text."""
        return f"{self.section}.{LEAVE} = true"

    def problems(self, links: Iterable[str] = ()) -> list[str]:
        """Returns a line for each address of the settings that would be called in plain text.

        Args:
            links: The keys of `[mesh]` that it calls beside the endpoints and Redis.
        """
        return [*self.endpoint_problems(), *self.link_problems(links)]

    def endpoint_problems(self) -> list[str]:
        """Returns a line for each endpoint that prompts would be sent to in plain text."""
        return [
            f"mesh.endpoints.{index}.address: {entry.address} is on another machine, which needs"
            f" {self.needed}; {self.instead} sends prompts and keys in plain text"
            for index, entry in enumerate(self.mesh.endpoints)
            if self.is_readable(entry.address)
        ]

    def link_problems(self, links: Iterable[str] = ()) -> list[str]:
        """Returns a line for Redis and each of these keys, if it would be called in plain text."""
        if self.is_open:
            return []
        found, mesh = [], self.mesh
        for key in links:
            address = getattr(mesh, key)
            if address and not mesh.tls.certificate and not _is_local(address):
                found.append(
                    f"mesh.{key}: {address} is on another machine, which needs TLS ([mesh.tls]);"
                    f" {self.instead} calls it in plain text"
                )
        if _is_readable_redis(mesh.redis_url):
            found.append(
                f"mesh.redis_url: {without_password(mesh.redis_url)} is on another machine, which"
                f" needs TLS ({_REDIS_BY_TLS}://); {self.instead} sends records and the password in"
                " plain text"
            )
        return found

    def check_endpoints(self) -> None:
        """Raises SettingsError with the `endpoint_problems`."""
        if found := self.endpoint_problems():
            raise SettingsError(found)


def _is_local(address: str) -> bool:
    return parse_address(address).is_loopback


def _is_readable_redis(url: str) -> bool:
    """Returns whether Redis is another machine's and is called without TLS."""
    parts = urlsplit(url)
    if parts.scheme != "redis":  # none, by TLS, or by a socket of this machine
        return False
    host = parts.hostname or ""
    return not _is_local(f"[{host}]:1" if ":" in host else f"{host}:1")
