"""Files that a command line names: a path, or the name of one that comes with the product."""

from __future__ import annotations

import os
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


def check_writable(path: pathlib.Path, option: str) -> None:
    """Refuses a file that could not be written, before the minutes whose result it is to hold.

    Args:
        path: The file; folders above it may be missing.
        option: Named in errors.

    Raises:
        InputError: It is a folder, or the nearest folder above it is none or may not be changed.
    """
    try:
        above, is_folder = path.absolute().parent, path.is_dir()
        while not above.exists():
            above = above.parent
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise InputError(f"{option}: {path}: {error.strerror or error}") from None
    if is_folder:
        raise InputError(f"{option}: {path} is a folder, and no file")
    if not above.is_dir():
        raise InputError(f"{option}: {above} is no folder")
    # A device or a pipe is written to, any other file gets another one in its place.
    takes_text = path.exists() and not path.is_file()
    place, wanted = (path, os.W_OK) if takes_text else (above, os.W_OK | os.X_OK)
    if not os.access(place, wanted):
        raise InputError(f"{option}: {place} may not be written to")
