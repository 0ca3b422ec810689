"""Channels within the mesh: always straight to the address, whatever proxy the environment names.

gRPC itself would send even calls to this machine through `http_proxy`.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc

_STRAIGHT = (("grpc.enable_http_proxy", 0),)


def open_channel(address: str, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
    """Opens a channel of the running event loop; it connects with its first call."""
    return grpc.aio.insecure_channel(address, options=[*_STRAIGHT, *options])


def open_blocking_channel(address: str) -> grpc.Channel:
    """Opens a channel for blocking calls; use it as a context manager."""
    return grpc.insecure_channel(address, options=_STRAIGHT)
