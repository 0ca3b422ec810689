"""Network addresses in settings: `host:port` text, checked once and typed."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?$")
_HIGHEST_PORT = 65_535
_PORT_DIGITS = 5


class HostPort(NamedTuple):
    """A parsed address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_address(text: str, *, allow_port_zero: bool = False) -> HostPort:
    """Parses `host:port` or `[ipv6]:port`.

    Args:
        text: The address.
        allow_port_zero: True where 0 means any free port, i.e. where a service listens.

    Raises:
        ValueError: It is no such address; the message says what is expected.
    """
    host, separator, port_text = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(
                "expected host:port, the part in brackets is no IPv6 address"
            ) from None
    elif not separator or not _HOST.match(host):
        raise ValueError("expected host:port, e.g. 127.0.0.1:8001")
    lowest = 0 if allow_port_zero else 1
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= _PORT_DIGITS
    if not is_number or not lowest <= int(port_text) <= _HIGHEST_PORT:
        raise ValueError(f"the port must be a number from {lowest} to {_HIGHEST_PORT}")
    return HostPort(host, int(port_text))


def _dialled(text: str) -> str:
    parse_address(text)
    return text


def _optionally_dialled(text: str) -> str:
    return _dialled(text) if text else text


def _listened(text: str) -> str:
    parse_address(text, allow_port_zero=True)
    return text


def _optionally_listened(text: str) -> str:
    return _listened(text) if text else text


Address = Annotated[str, AfterValidator(_dialled)]
"""An address to connect to."""
OptionalAddress = Annotated[str, AfterValidator(_optionally_dialled)]
"""An address to connect to; empty means none."""
ListenAddress = Annotated[str, AfterValidator(_listened)]
"""An address to listen on; port 0 takes any free one."""
OptionalListenAddress = Annotated[str, AfterValidator(_optionally_listened)]
"""An address to listen on; empty means do not listen."""
