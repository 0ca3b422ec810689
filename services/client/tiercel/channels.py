"""Client-side balancing: routers are used in turn, those not reached come last."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import grpc

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
PathLike = str | os.PathLike[str]
AVOID_S = 1.0
"""How long a router that was not reached goes to the end of the line."""


@dataclasses.dataclass(slots=True)
class Router:
    """One router address with its channel.

    Attributes:
        address: host:port.
        channel: Its channel, opened lazily by gRPC.
        avoid_until_s: Monotonic time until which other routers are tried first.
    """

    address: str
    channel: grpc.aio.Channel
    avoid_until_s: float = 0.0


class RouterPool:
    """Hands out routers in turn; those that failed lately come last."""

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        credentials: grpc.ChannelCredentials | None = None,
        use_proxy: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens one channel per address.

        Raises:
            ValueError: No address, or an address is empty.
        """
        if not addresses or not all(addresses):
            raise ValueError("addresses: at least one router address (host:port) is needed")
        self._clock = clock
        self._next = 0
        self.routers = [Router(each, _open(each, credentials, use_proxy)) for each in addresses]

    def attempts(self) -> Iterator[Router]:
        """Yields every router once: the next in turn first, the ones to avoid last.

        The only one comes twice: its address may stand for several routers behind a balancer, and
        the one that is stopping just now is not the one that takes the next call.
        """
        count = len(self.routers)
        start = self._next
        self._next = (start + 1) % count
        if count == 1:
            yield from (self.routers[0], self.routers[0])
            return
        now_s = self._clock()
        line = [self.routers[(start + offset) % count] for offset in range(count)]
        yield from sorted(line, key=lambda router: router.avoid_until_s > now_s)

    def avoid(self, router: Router) -> None:
        """Puts a router that was not reached at the end of the line for a while."""
        router.avoid_until_s = self._clock() + AVOID_S

    async def close(self) -> None:
        """Closes every channel at once; calls under way are cancelled."""
        for router in self.routers:
            await router.channel.close()


def _open(
    address: str, credentials: grpc.ChannelCredentials | None, use_proxy: bool
) -> grpc.aio.Channel:
    options = (*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(use_proxy)))
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def credentials_of(
    root_certificates: PathLike, certificate: PathLike | None, key: PathLike | None
) -> grpc.ChannelCredentials:
    """Returns TLS credentials of PEM files; the certificate, with its key, shows who calls.

    Raises:
        OSError: A file cannot be read.
        ValueError: A certificate without its key, or the reverse.
    """
    if (certificate is None) != (key is None):
        raise ValueError("certificate, key: give both or none")
    return grpc.ssl_channel_credentials(
        pathlib.Path(root_certificates).read_bytes(),
        None if key is None else pathlib.Path(key).read_bytes(),
        None if certificate is None else pathlib.Path(certificate).read_bytes(),
    )


def is_loopback(address: str) -> bool:
    """Returns whether calls to an address stay on this machine."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.rpartition(":")[0].removeprefix("ipv4:").removeprefix("ipv6:").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
