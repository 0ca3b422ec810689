"""Standard streams that whoever started the process has closed, as some starters of daemons do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_IN, _ERROR = 0, 2


def hold_standard_streams() -> None:
    """Opens the closed ones of them to nothing; to be called before anything else is opened.

    Otherwise their numbers go to the next sockets. What a library writes to standard error then
    reaches a client, and the event loop ends the process as it closes such a socket.
    """
    for number in range(_IN, _ERROR + 1):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDONLY if number == _IN else os.O_WRONLY)
            os.set_inheritable(number, True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
