"""Environments of outside programs that are measured or asked: made once, by pip, by name."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from services.local.errors import CommandError

TIMEOUT_S = 1_800
_MADE = "made"
"""Says of a whole environment what it holds; an interrupted one has none."""


def make_environment(
    folder: pathlib.Path, package: str, constraints: pathlib.Path | None = None
) -> pathlib.Path:
    """Makes the environment a package runs in, if it is not there yet; returns its folder.

    Args:
        folder: Where it lies; one that holds something else is made anew.
        package: The package with its version.
        constraints: File with the versions of everything it brings.

    Raises:
        CommandError: The package cannot be had.
    """
    made, holds = folder / _MADE, package
    more: list[str] = []
    if constraints is not None:
        holds += "\n" + constraints.read_text(encoding="utf-8")
        more = ["--constraint", str(constraints)]
    if made.is_file() and made.read_text(encoding="utf-8") == holds:
        return folder
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*pip, "--only-binary", ":all:", *more, package],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            raise CommandError(f"{package} cannot be had within {TIMEOUT_S} s") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise CommandError(f"{package} cannot be had: {last}")
    made.write_text(holds, encoding="utf-8")
    return folder
