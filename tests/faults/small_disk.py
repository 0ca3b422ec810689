"""A disk that can be full or read-only while the mesh writes to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

_FILLER = ".filler"


class SmallDisk:
    """A file system of its own, in memory, at a folder."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        """Mounts it.

        Raises:
            OSError: This process may not mount.
        """
        self.folder = folder
        self._is_covered = False
        folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder))

    def fill(self) -> None:
        """Takes every byte that is left, so that each further write fails with ENOSPC."""
        with contextlib.suppress(OSError), (self.folder / _FILLER).open("ab", buffering=0) as file:
            block = bytes(os.statvfs(self.folder).f_frsize)
            while True:
                file.write(block)

    def set_read_only(self) -> None:
        """Makes every opening for writing, and every change of names, fail with EROFS.

        What is open already goes on, as a kernel makes no file system read-only while there are
        such files, and logs always are: a read-only view is laid over the folder.

        Raises:
            OSError: This process may not mount.
        """
        _mount("--bind", str(self.folder), str(self.folder))
        self._is_covered = True
        _mount("-o", "remount,bind,ro", str(self.folder))

    def mend(self) -> None:
        """Gives room and rights back."""
        if self._is_covered:
            self._unmount()
            self._is_covered = False
        (self.folder / _FILLER).unlink(missing_ok=True)

    def close(self) -> None:
        """Unmounts it, whoever still uses it."""
        self.mend()
        self._unmount()

    def _unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True, capture_output=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"mount: {done.stderr.strip()[:200]}")
