"""Names of processes, no two alike."""

from __future__ import annotations

import os
import secrets
import socket

_LONGEST_HOST = 40


def new_process_id() -> str:
    """Returns a name that no other process has.

    Host name and process id help whoever reads a log; they are not enough, since two containers
    may share both.
    """
    host = socket.gethostname()[:_LONGEST_HOST]
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"
