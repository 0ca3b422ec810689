"""Channels within the mesh: always straight to the address, whatever proxy the environment names.

gRPC itself would send even calls to this machine through `http_proxy`, and through
`GRPC_ADDRESS_HTTP_PROXY` though `http_proxy` was switched off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from services.common.access.tls import Certificates, Tls

STRAIGHT: tuple[tuple[str, int | str], ...] = (
    ("grpc.enable_http_proxy", 0),
    # No address is called through the proxy for addresses.
    ("grpc.address_http_proxy_enabled_addresses", ""),
)
"""Channel arguments by which no proxy is used."""
NOT_PACKED: tuple[tuple[str, int], ...] = (
    # The set of algorithms that has only the one that packs nothing.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)
"""Arguments of channels and servers by which no message is packed, and none is unpacked: a few kB
would take as much memory as the longest message."""
_RECONNECT = (
    # A peer that comes back is used within a second, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name this also bounds one attempt to connect; while all cores are busy, an
    # attempt takes longer than the shortest wait between two.
    ("grpc.min_reconnect_backoff_ms", 1_000),
)
_LONG_ANSWERS = (("grpc.max_receive_message_length", 32 * 1024 * 1024),)
"""Argument by which the answer to a command may hold a snapshot, or a large mesh."""
_OLD_CALLS_S = 600.0
"""How long calls under way may go on once their channel's certificates were renewed, seconds.

Streamed answers take minutes; what never ends begins anew then.
"""


def open_channel(
    address: str, options: Sequence[tuple[str, int | str]] = (), tls: Tls | None = None
) -> grpc.aio.Channel:
    """Opens a channel of the running event loop; it connects with its first call.

    Args:
        address: Where to.
        options: gRPC's channel arguments beside our own.
        tls: Certificates; None means plain text.
    """
    all_options = [*STRAIGHT, *NOT_PACKED, *_RECONNECT, *options]
    if tls is None:
        return grpc.aio.insecure_channel(address, options=all_options)
    return _RenewedChannel(
        tls,
        lambda certificates: grpc.aio.secure_channel(
            address, certificates.for_channel(), options=all_options
        ),
    )


def open_blocking_channel(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> grpc.Channel:
    """Opens a channel for blocking calls; use it as a context manager."""
    options = STRAIGHT + NOT_PACKED + _LONG_ANSWERS
    if credentials is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, credentials, options=options)


def connection_of(channel: grpc.aio.Channel) -> Callable[[], object]:
    """Returns what tells the connection that a channel's next call goes on.

    Once certificates were renewed that is another one, and the calls on the one before will be cut:
    a call that serves one request after another must take no further one.
    """
    return channel.current if isinstance(channel, _RenewedChannel) else lambda: channel


class _RenewedChannel(grpc.aio.Channel):
    """A channel that connects anew once its certificates were renewed.

    gRPC's Python offers no credentials that change. Calls under way end on the old connection.
    """

    def __init__(self, tls: Tls, connect: Callable[[Certificates], grpc.aio.Channel]) -> None:
        self._tls = tls
        self._connect = connect
        self._shown = tls.current()
        self._channel = connect(self._shown)
        self._closing: set[asyncio.Task[None]] = set()

    def current(self) -> grpc.aio.Channel:
        """Returns the channel that shows the certificates of now."""
        certificates = self._tls.current()
        if certificates is not self._shown:
            self._shown = certificates
            closing = asyncio.ensure_future(self._channel.close(_OLD_CALLS_S))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._channel = self._connect(certificates)
        return self._channel

    async def __aenter__(self) -> _RenewedChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for closing in tuple(self._closing):
            closing.cancel()
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel_ready()

    def unary_unary(self, *arguments: Any, **named: Any) -> Any:
        return _RenewedMethod(self, "unary_unary", arguments, named)

    def unary_stream(self, *arguments: Any, **named: Any) -> Any:
        return _RenewedMethod(self, "unary_stream", arguments, named)

    def stream_unary(self, *arguments: Any, **named: Any) -> Any:
        return _RenewedMethod(self, "stream_unary", arguments, named)

    def stream_stream(self, *arguments: Any, **named: Any) -> Any:
        return _RenewedMethod(self, "stream_stream", arguments, named)


class _RenewedMethod:
    """One method of a stub: calls on the channel of now."""

    def __init__(
        self,
        owner: _RenewedChannel,
        kind: str,
        arguments: tuple[Any, ...],
        named: dict[str, Any],
    ) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._named = named
        self._channel: grpc.aio.Channel | None = None
        self._call: Any = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        channel = self._owner.current()
        if channel is not self._channel:
            self._channel = channel
            self._call = getattr(channel, self._kind)(*self._arguments, **self._named)
        return self._call(*arguments, **named)
