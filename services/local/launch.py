"""Becomes another program after tying it to its parent: `python launch.py OPTIONS -- PROGRAM ...`.

A separate small program, because a Python process that holds gRPC threads must not run code of
its own between fork and exec. Standard library only; runs isolated (`python -I -S`).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def tied_command(program: Sequence[str], *, cores: Sequence[int] = (), nice: int = 0) -> list[str]:
    """Returns the command that runs a program tied to this process.

    Args:
        program: Absolute path and arguments.
        cores: Processors it may use; empty means all.
        nice: Nice level, 0 or above.
    """
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__)]  # noqa: PTH100 - loads fast
    command += ["--parent-pid", str(os.getpid()), "--nice", str(nice)]
    if cores:
        command += ["--cpu-cores", ",".join(str(core) for core in cores)]
    return [*command, "--", *program]


def module_command(module: str, *arguments: str) -> tuple[str, ...]:
    """Returns the command that runs a module of this installation.

    It is not looked for in the current directory, where `services`, `router` and `trainer` may be
    somebody else's.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def main(arguments: list[str]) -> None:
    """Sets death signal, cores and nice level, then replaces itself; exits 127 if it cannot."""
    separator = arguments.index("--")
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--cpu-cores", default="")
    parser.add_argument("--nice", type=int, default=0)
    options = parser.parse_args(arguments[:separator])
    program = arguments[separator + 1 :]

    # The death signal outlives exec. SIGTERM lets the program shut its own children down.
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != options.parent_pid:
        sys.exit(f"{program[0]}: its parent ended before it started")
    if options.cpu_cores:
        os.sched_setaffinity(0, {int(core) for core in options.cpu_cores.split(",")})
    if options.nice:
        os.nice(options.nice)
    try:
        os.execv(program[0], program)
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1:])
