"""A whole mesh as real processes, started by the command a user types."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.waiting import until_sync

NAME = "e2e"
# An installed mesh compiles its code first: minutes, where other work is beside it.
START_LIMIT_S = 400.0
STOP_LIMIT_S = 60.0
# A process that has been told to end does so at once, but on a busy machine.
GONE_LIMIT_S = 10.0


@dataclass
class Mesh:
    """A running `tiercel up`.

    Attributes:
        process: The command itself; its children are the mesh.
        manifest: What it wrote to mesh.json.
        folder: Folder of its files.
        log: File with what the command printed.
    """

    process: subprocess.Popen[bytes]
    manifest: dict[str, Any]
    folder: Path
    log: Path

    @property
    def routers(self) -> list[str]:
        """Addresses of the routers."""
        return list(self.manifest["routers"])

    def descendants(self) -> list[psutil.Process]:
        """Returns every process below the command."""
        return psutil.Process(self.process.pid).children(recursive=True)


def start_mesh(folder: Path, *arguments: str, **how: Any) -> Mesh:
    """Starts `tiercel up` and waits until it serves; takes what `run_up` takes."""
    process, log = run_up(folder, *arguments, **how)
    try:
        until_sync(
            lambda: serves(log) or process.poll() is not None, "the mesh serves", START_LIMIT_S
        )
        assert process.poll() is None, log.read_text()
    except AssertionError:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_LIMIT_S)
        raise
    run_folder = folder / "run" / NAME
    return Mesh(process, json.loads((run_folder / "mesh.json").read_text()), run_folder, log)


def run_up(
    folder: Path,
    *arguments: str,
    tiers: Sequence[str] = ("--paced", "opt-a100"),
    variables: Mapping[str, str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "services.cli"),
    directory: Path | None = None,
) -> tuple[subprocess.Popen[bytes], Path]:
    """Begins `tiercel up`; returns its process, and the file with what it prints.

    Args:
        folder: Its files, and its log.
        *arguments: Further options of the command.
        tiers: Options that say what it serves; empty: the reference tiers.
        variables: Environment variables beside our own.
        program: How `tiercel` is called.
        directory: Working directory; None: ours.
    """
    log = folder / "up.log"
    command = [*program, "up", "--name", NAME, "--json", *tiers, *arguments]
    environment = {**os.environ, "TIERCEL_STATE": str(folder), **(variables or {})}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=directory
        )
    return process, log


def serves(log: Path) -> bool:
    """Says whether the mesh of a log serves: then its JSON has closed in the first column."""
    return "\n}" in log.read_text()


def stop_mesh(mesh: Mesh) -> list[str]:
    """Ends the mesh as Ctrl-C would; returns what outlived it (which should be nothing)."""
    below = mesh.descendants() if mesh.process.poll() is None else []
    mesh.process.send_signal(signal.SIGINT)
    try:
        mesh.process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        mesh.process.kill()
        mesh.process.wait()
    _, alive = psutil.wait_procs(below, timeout=GONE_LIMIT_S)
    left = [f"{process.pid} {process.name()}" for process in alive]
    for process in alive:
        process.kill()
    return left
