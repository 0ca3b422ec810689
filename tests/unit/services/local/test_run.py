"""Commands that own processes: which signals end them."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

SCRIPT = """
import asyncio, os, signal, sys
from services.local.run import run_owning_children
if sys.argv[1] == "ignored":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
async def work():
    os.kill(os.getpid(), signal.SIGHUP)
    for _ in range(20):
        await asyncio.sleep(0)
    return 7
sys.exit(run_owning_children(work(), print))
"""


@pytest.mark.parametrize(("hang_up", "code"), [("default", 128 + signal.SIGHUP), ("ignored", 7)])
def test_a_closed_terminal_ends_what_was_not_told_to_outlive_it(hang_up: str, code: int) -> None:
    """By nohup the signal is ignored from the start, and stays so."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, hang_up], timeout=60, check=False)
    assert done.returncode == code


UNHEARD = """
import asyncio, sys
from services.cli.output import note
from services.local.run import run_owning_children
async def work():
    note("ready")
    await asyncio.sleep(600)
sys.exit(run_owning_children(work(), note))
"""


def test_ctrl_c_ends_it_where_nobody_reads_any_more() -> None:
    """Behind a pipe, `tee` for instance, Ctrl-C ends the reader first."""
    command = [sys.executable, "-c", UNHEARD]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"ready\n"
        process.stderr.close()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 128 + signal.SIGINT
        finally:
            process.kill()
