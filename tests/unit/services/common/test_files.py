"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from services.common import files
from services.common.files import read_bytes, write_whole


def test_of_a_file_no_more_is_read_than_may_be_used(tmp_path: Path) -> None:
    """One byte more says that it is too large, also where it has no end."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, 200) == b"x" * 100
    assert read_bytes(path, 9) == b"x" * 10
    assert read_bytes(Path("/dev/zero"), 9) == bytes(10)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path, 9)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """As a shell's `<(command)` is one; its writer may come later."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(b"y" * 300_000))
    writer.start()
    assert read_bytes(path, 1_000_000) == b"y" * 300_000
    writer.join()


def test_a_pipe_that_nobody_writes_to_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line instead of a process that waits for ever."""
    monkeypatch.setattr(files, "SILENCE_S", 0.01)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="nothing came out of it"):
        read_bytes(path, 100)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    """With the permissions asked for."""
    path = tmp_path / "a"
    path.write_text("old")
    write_whole(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_one(tmp_path: Path) -> None:
    """What it leads to is written, also if that was not there."""
    link, path = tmp_path / "link", tmp_path / "a"
    link.symlink_to(path)
    for data in (b"one", b"two"):
        write_whole(link, data)
        assert link.is_symlink()
        assert path.read_bytes() == data
    path.unlink()
    path.symlink_to(link)  # one that leads nowhere gives way
    write_whole(link, b"three")
    assert link.read_bytes() == b"three"


def test_what_is_no_ordinary_file_is_written_to(tmp_path: Path) -> None:
    """A file in the place of `/dev/null` would be everybody's loss."""
    path, read = tmp_path / "pipe", list[bytes]()
    os.mkfifo(path)
    with pytest.raises(OSError, match="pipe"):  # nobody reads it, and nobody is waited for
        write_whole(path, b"x")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    write_whole(path, b"x" * 1_000)
    read.append(os.read(reader, 10_000))
    os.close(reader)
    assert read == [b"x" * 1_000]
    assert [each.is_fifo() for each in tmp_path.iterdir()] == [True]


def test_a_file_of_ones_own_is_nobody_elses_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that all may read for a moment is everybody's."""
    seen: list[int] = []
    write_bytes = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        seen.append(self.stat().st_mode & 0o777)
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    write_whole(tmp_path / "key", b"secret", mode=0o600)
    assert seen == [0o600]


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
