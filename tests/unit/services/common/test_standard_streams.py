"""Processes that were started without standard streams."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import os, socket, sys
from services.common.standard_streams import hold_standard_streams
hold_standard_streams()
print("out")
print("error", file=sys.stderr)
with socket.socket() as opened, open(sys.argv[1], "w") as file:
    file.write(str(opened.fileno() > 2))
"""


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-", ""])
def test_no_socket_gets_the_number_of_a_standard_stream(tmp_path: Path, closed: str) -> None:
    """Where one was closed it leads to nothing; where not, it stays what it is."""
    told = tmp_path / "told"
    ran = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", _PROGRAM, str(told)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, told.read_text()) == (0, "True")
    assert ran.stdout == ("" if "1>&-" in closed else "out\n")
    assert ran.stderr == ("" if "2>&-" in closed else "error\n")
