"""Files that settings and command lines name."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from router.documents import LARGEST_DOCUMENT_BYTES


def read_text(path: Path, largest_bytes: int = LARGEST_DOCUMENT_BYTES) -> str:
    """Reads a file of text, at most as much of it as is ever used.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    return read_bytes(path, largest_bytes).decode("utf-8")


def read_bytes(path: Path, largest_bytes: int) -> bytes:
    """Reads a file up to one byte more than it may have; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(largest_bytes + 1)


def write_whole(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Writes a file so that readers see the old one or the new one, never half of one.

    Args:
        path: The file; its folder must be there.
        data: All it shall hold.
        mode: Its permissions; None means those of any new file.

    Raises:
        OSError: It cannot be written; what was there is untouched, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a write that finds no room names none
        raise
