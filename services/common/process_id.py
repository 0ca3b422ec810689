"""Names of processes, no two alike, and of the clock that they share with others."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
from pathlib import Path

_LONGEST_HOST = 40


def new_process_id() -> str:
    """Returns a name that no other process has.

    Host name and process id help whoever reads a log; they are not enough, since two containers
    may share both.
    """
    host = socket.gethostname()[:_LONGEST_HOST]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def monotonic_clock_id() -> str:
    """Returns a name of the machine's monotonic clock, the same in all processes that read it.

    Where the machine does not say, the name is this process's alone.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        # Two namespaces of time on one machine are two clocks.
        boot += str(Path("/proc/self/ns/time").readlink())
    except OSError:
        return secrets.token_hex(8)
    return hashlib.sha256(boot.encode()).hexdigest()[:16]
