"""Loopback ports that a test may give away, take back and give away again."""

from __future__ import annotations

import itertools
import os

from services.local.ports import PortClaims

# Below the range from which the kernel takes ports of outgoing connections (32768 and up on Linux):
# a port stays free between the look at it and its use, and while a stopped server is away.
_FIRST, _COUNT = 20_000, 10_000
_offsets = itertools.count(os.getpid() * 97)
# Kept for as long as the process lives: another run of the suite gets other ports.
_claims = PortClaims()


def free_port() -> int:
    """Returns a port nobody listens on, another one at every call."""
    for offset in itertools.islice(_offsets, _COUNT):
        port = _FIRST + offset % _COUNT
        if _claims.claim(port):
            return port
    raise OSError("no free loopback port is left")
