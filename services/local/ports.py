"""Free loopback ports for processes that are started a little later."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
DEFAULT_PORTS: Mapping[str, int] = {
    "router": 7410,
    "router_metrics": 9410,
    "load_monitor": 7411,
    "load_monitor_metrics": 9411,
    "trainer": 7412,
    "trainer_metrics": 9412,
    "openai_door": 7440,
    "openai_door_metrics": 9440,
    "picker": 7430,
    "envoy": 8080,
    "envoy_admin": 9901,
    "triton_grpc": 8001,
    "triton_http": 8000,
    "triton_metrics": 8002,
    "redis": 6379,
}
# How many free ports are tried that the system offers and somebody else has claimed.
_MOST_TRIES = 1_000


class PortClaims:
    """Ports of one mesh, claimed from their choice to `release`.

    A port that is only looked at may be given away again before its process listens on it: two
    meshes started in the same second would choose the same. Each claim is a lock on a file, which
    the system drops when the process that holds it ends, however it ends.
    """

    def __init__(self) -> None:
        """Claims nothing yet."""
        self._locks: list[IO[bytes]] = []

    def choose(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Takes each wanted port if it is free, else any free one; no port is given twice."""
        return {name: self._take(port) for name, port in wanted.items()}

    def claim(self, port: int) -> bool:
        """Claims a port nobody listens on; returns False if somebody does or has claimed it."""
        lock = _lock(port)
        if lock is None:
            return False
        if free_port(HOST, port) is None:
            lock.close()
            return False
        self._locks.append(lock)
        return True

    def any_free(self) -> int:
        """Claims a port that the system offers.

        Raises:
            OSError: none is left.
        """
        for _ in range(_MOST_TRIES):
            port = free_port(HOST, 0)
            if port is None:
                break
            if self.claim(port):
                return port
        raise OSError("no free loopback port is left")

    def release(self) -> None:
        """Gives every claim back."""
        for lock in self._locks:
            lock.close()
        self._locks.clear()

    def _take(self, port: int) -> int:
        return port if port and self.claim(port) else self.any_free()


def free_port(host: str, port: int) -> int | None:
    """Returns the port if one can listen on it at this moment (0 = any), else None."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(1)
        except OSError:
            return None
        return int(listener.getsockname()[1])


def _lock(port: int) -> IO[bytes] | None:
    """Returns the locked file of a port; None if somebody holds it."""
    folder = Path(tempfile.gettempdir()) / f"tiercel-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    file = (folder / str(port)).open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
