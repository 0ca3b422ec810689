"""Files that a command line names: a path, or the name of one that comes with the product."""

from __future__ import annotations

import pathlib

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES
from services.common import files
from services.common.files import write_whole
from services.local.errors import CommandError, InputError
from trainer.shipped import NotShippedError, find


def shipped_file(folder: str, name: str, option: str) -> pathlib.Path:
    """Returns the file that a path or a shipped name stands for; raises InputError if none does."""
    try:
        return find(folder, name)
    except NotShippedError as error:
        raise InputError(f"{option}: {error}") from None


def read_bytes(path: pathlib.Path) -> bytes:
    """Reads a file, of none more than a byte beyond a snapshot's limit.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return files.read_bytes(path, MAX_SNAPSHOT_BYTES)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file and the folders above it; raises CommandError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None
