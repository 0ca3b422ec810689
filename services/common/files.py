"""Files that settings and command lines name."""

from __future__ import annotations

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
