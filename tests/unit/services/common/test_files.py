"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.files import write_whole


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """With the permissions asked for."""
    path = tmp_path / "a"
    path.write_text("old")
    write_whole(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that becomes full half way: the old file stays, no half of the new one does."""
    path = tmp_path / "a"
    path.write_text("old")

    def half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
