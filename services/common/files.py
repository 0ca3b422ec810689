"""Files that settings and command lines name."""

from __future__ import annotations

import errno
import os
import select
import stat
from contextlib import suppress
from io import RawIOBase
from pathlib import Path

from router.documents import LARGEST_DOCUMENT_BYTES

SILENCE_S = 5.0
"""Longest time in which nothing comes out of a pipe, seconds."""
_READABLE = 0o055


def read_text(path: Path, largest_bytes: int = LARGEST_DOCUMENT_BYTES) -> str:
    """Reads a file of text, at most as much of it as is ever used.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, largest_bytes).decode("utf-8")


def read_bytes(path: Path, largest_bytes: int) -> bytes:
    """Reads a file, or what comes out of a pipe, up to one byte more than it may have.

    Raises:
        OSError: It cannot be read, or is a pipe that nobody writes to.
    """
    # To open a pipe waits for its writer, for ever if none comes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.set_blocking(descriptor, True)
            return _all_of(file, largest_bytes + 1)
        return _as_it_comes(descriptor, largest_bytes + 1)


def _all_of(file: RawIOBase, most: int) -> bytes:
    parts = bytearray()
    while len(parts) < most and (part := file.read(most - len(parts))):
        parts += part
    return bytes(parts)


def _as_it_comes(descriptor: int, most: int) -> bytes:
    poll, parts = select.poll(), bytearray()
    poll.register(descriptor, select.POLLIN)
    while len(parts) < most:
        if not poll.poll(SILENCE_S * 1e3):
            raise OSError(errno.ETIMEDOUT, f"nothing came out of it for {SILENCE_S:g} s")
        part = os.read(descriptor, most - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)


def write_whole(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Writes a file so that readers see the old one or the new one, never half of one.

    A link stays one. What is there and no ordinary file, such as `/dev/null` or a pipe, is written
    to: to put a file in its place would take it from the whole machine.

    Args:
        path: The file; its folder must be there.
        data: All it shall hold.
        mode: Its permissions; None means those of any new file.

    Raises:
        OSError: It cannot be written; what was there is untouched, and nothing is left beside it.
    """
    if path.exists() and not path.is_file():
        _write_to(path, data)
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if mode is not None:
            temporary.touch(mode=0o600)  # nobody else reads it meanwhile
        temporary.write_bytes(data)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write that finds no room names none
        raise


def open_folder(path: Path) -> None:
    """Makes a folder whose files every user can read, as those of containers do.

    Without this the `umask` of whoever makes it counts, and on many machines that keeps others out.

    Raises:
        OSError: It cannot be made, or is somebody else's and closed.
    """
    path.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _READABLE != _READABLE:
        path.chmod(mode | _READABLE)


def _write_to(path: Path, data: bytes) -> None:
    # To open a pipe waits for its reader, for ever if none comes.
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        os.set_blocking(descriptor, True)
        file.write(data)
