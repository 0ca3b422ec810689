"""Ports of a Triton server."""

from __future__ import annotations

import socket

from services.local.triton.errors import PortInUseError


def choose_ports(host: str, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the wanted ports with each 0 replaced by a free one.

    Triton itself cannot pick a port. The sockets stay open until all are chosen, so that no port
    is chosen twice.

    Raises:
        PortInUseError: A port that was asked for is taken.
    """
    sockets: list[socket.socket] = []
    try:
        for port in wanted:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sockets.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, port))
                listener.listen(1)
            except OSError as error:
                raise PortInUseError(
                    f"Triton cannot listen on {host}:{port}: {error.strerror}"
                ) from error
        return tuple(listener.getsockname()[1] for listener in sockets)
    finally:
        for listener in sockets:
            listener.close()
