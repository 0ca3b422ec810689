"""Client-side balancing: connections are used in turn, those to routers that fail come last."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import grpc

from tiercel.arguments import check, check_addresses

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    # Channels to one address would share a connection otherwise.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # A router that is back must be reached before the next one stops, which serves on for a second
    # (`lame_duck_s`). gRPC adds a fifth.
    ("grpc.max_reconnect_backoff_ms", 500),
    # In spite of its name this also bounds one attempt to connect; while all cores are busy, an
    # attempt takes longer than the shortest wait between two.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
_STRAIGHT = (
    ("grpc.enable_http_proxy", 0),
    # gRPC has a second kind of proxy, for addresses (GRPC_ADDRESS_HTTP_PROXY).
    ("grpc.address_http_proxy_enabled_addresses", ""),
)
PathLike = str | os.PathLike[str]
AVOID_S = 1.0
"""How long a router that was not reached, or let a call run out of time, comes last."""


CONNECTIONS = 4
"""Connections to each address. gRPC balances connections, not calls: all that one connection
carries is answered by one of the processes, or pods, behind the address."""


@dataclasses.dataclass(slots=True, eq=False)
class Connection:
    """One of the connections to a router address.

    Attributes:
        address: host:port.
        channel: Its channel, opened lazily by gRPC.
    """

    address: str
    channel: grpc.aio.Channel


class RouterPool:
    """Hands out connections in turn; those to routers that failed lately come last."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        connections: int = CONNECTIONS,
        credentials: grpc.ChannelCredentials | None = None,
        use_proxy: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes `connections` channels to each address, each opened by its first call.

        Raises:
            TypeError: An address is no text.
            ValueError: No address, one that is none, or no connection.
        """
        lines = checked(addresses, connections)
        self._clock = clock
        self._next = 0
        self._avoid_until_s: dict[str, float] = {}
        self.connections = [
            Connection(address, _open(address, credentials, use_proxy))
            for _ in range(connections)
            for address in dict.fromkeys(lines)
        ]

    def attempts(self) -> Iterator[Connection]:
        """Yields a connection to every router: the next in turn first, routers to avoid last.

        The only router comes by all of its connections, and once more by the first: its address may
        stand for several processes, and the one that is stopping just now has some of them, but is
        not the one that takes the next.
        """
        start = self._next
        self._next = (start + 1) % len(self.connections)
        line = self.connections[start:] + self.connections[:start]
        first = {connection.address: connection for connection in reversed(line)}
        if len(first) == 1:
            yield from (*line, line[0])
            return
        now_s, avoided = self._clock(), self._avoid_until_s
        order = dict.fromkeys(connection.address for connection in line)
        for address in sorted(order, key=lambda each: avoided.get(each, 0.0) > now_s):
            yield first[address]

    def avoid(self, connection: Connection) -> None:
        """Puts a router that was not reached, or is silent, at the end of the line for a while."""
        self._avoid_until_s[connection.address] = self._clock() + AVOID_S

    async def close(self) -> None:
        """Closes every channel at once, and lets go of it; calls under way are cancelled."""
        connections = self.connections
        self.connections = []
        for connection in connections:
            await connection.channel.close()


def checked(addresses: Sequence[str], connections: int) -> list[str]:
    """Returns the addresses of a pool, if there can be one.

    Raises:
        TypeError: An address is no text.
        ValueError: No address, one that is none, or no connection.
    """
    lines = check_addresses(addresses)
    check(connections=connections)
    if connections < 1:
        raise ValueError(f"connections: must be at least 1, got {connections}")
    return lines


def _open(
    address: str, credentials: grpc.ChannelCredentials | None, use_proxy: bool
) -> grpc.aio.Channel:
    options = (*CHANNEL_OPTIONS, *(() if use_proxy else _STRAIGHT))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def credentials_of(
    root_certificates: PathLike, certificate: PathLike | None, key: PathLike | None
) -> grpc.ChannelCredentials:
    """Returns TLS credentials of PEM files; the certificate, with its key, shows who calls.

    Raises:
        OSError: A file cannot be read.
        ValueError: A certificate without its key, or the reverse, or a file that is no PEM file.
    """
    if (certificate is None) != (key is None):
        raise ValueError("certificate, key: give both or none")
    return grpc.ssl_channel_credentials(
        _pem("root_certificates", root_certificates),
        None if key is None else _pem("key", key),
        None if certificate is None else _pem("certificate", certificate),
    )


def _pem(name: str, path: PathLike) -> bytes:
    content = pathlib.Path(path).read_bytes()
    if b"-----BEGIN " not in content:  # gRPC would say no more than that nobody is reached
        raise ValueError(f"{name}: {os.fspath(path)}: is no PEM file")
    return content


def is_loopback(address: str) -> bool:
    """Returns whether calls to an address stay on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
