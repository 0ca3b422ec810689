"""Free loopback ports for an embedded mesh."""

from __future__ import annotations

import socket
from collections.abc import Mapping

HOST = "127.0.0.1"
DEFAULT_PORTS: Mapping[str, int] = {
    "router": 7410,
    "router_metrics": 9410,
    "load_monitor": 7411,
    "load_monitor_metrics": 9411,
    "trainer": 7412,
    "trainer_metrics": 9412,
    "triton_grpc": 8001,
    "triton_http": 8000,
    "triton_metrics": 8002,
    "redis": 6379,
}


def choose_ports(wanted: Mapping[str, int]) -> dict[str, int]:
    """Takes each wanted port if it is free, else any free one; no port is given twice.

    The sockets stay open until all ports are chosen. Somebody else may still take one before its
    process starts; the process then ends, says so, and is started again.
    """
    held: list[socket.socket] = []
    try:
        return {name: _take(port, held) for name, port in wanted.items()}
    finally:
        for each in held:
            each.close()


def _take(port: int, held: list[socket.socket]) -> int:
    for candidate in (port, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, candidate))
            listener.listen(1)
        except OSError:
            listener.close()
            continue
        held.append(listener)
        return int(listener.getsockname()[1])
    raise OSError("no free loopback port is left")
