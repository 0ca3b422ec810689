"""Steps of the wall clock, seen by chosen processes only."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock_shift.c")
_NS_PER_S = 1_000_000_000


class ShiftedClocks:
    """Shifts the clocks of processes that were started with `variables`; see `clock_shift.c`."""

    def __init__(self, folder: Path) -> None:
        """Compiles the library into a folder of its own.

        Raises:
            OSError: There is no C compiler, or it refuses the source.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise OSError("no C compiler is installed")
        self._library = folder.parent / f"{folder.name}.so"
        made = subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", self._library, _SOURCE],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise OSError(f"{_SOURCE.name} cannot be compiled: {made.stderr.strip()[:200]}")

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment of a process whose clock shall be shifted later."""
        return {"LD_PRELOAD": str(self._library), "TEST_CLOCK_FOLDER": str(self._folder)}

    def step(self, pid: int, shift_s: float) -> None:
        """Sets how far a process's wall clock is ahead of the machine's; negative is behind.

        Raises:
            OSError: The process was not started with our variables, or is gone.
        """
        with (self._folder / str(pid)).open("r+b") as file:
            file.write(struct.pack("q", round(shift_s * _NS_PER_S)))
