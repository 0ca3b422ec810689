"""Checkpoints are whole or absent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainer.learning.checkpoint import (
    CheckpointError,
    load_checkpoint,
    previous_of,
    remove_leftovers,
    save_checkpoint,
    write_atomically,
)


def test_round_trip(tmp_path: Path) -> None:
    """What is read is what was written; a missing file is None."""
    path = tmp_path / "deep" / "state"
    assert load_checkpoint(path) is None
    save_checkpoint(path, {"step": 3}, {"a": np.arange(4), "b.c": np.zeros((2, 2))})
    loaded = load_checkpoint(path)
    assert loaded is not None
    meta, arrays = loaded
    assert meta == {"step": 3}
    np.testing.assert_array_equal(arrays["a"], np.arange(4))
    assert set(arrays) == {"a", "b.c"}


def test_what_is_no_ordinary_file_is_written_to(tmp_path: Path) -> None:
    """A snapshot in the place of `/dev/null` would be everybody's loss."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(path, b"x" * 1_000)
    assert os.read(reader, 10_000) == b"x" * 1_000
    os.close(reader)
    assert [each.is_fifo() for each in tmp_path.iterdir()] == [True]


def test_full_disk_leaves_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that fails half way changes nothing and leaves no litter."""
    path = tmp_path / "state"
    save_checkpoint(path, {"step": 1}, {})

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(path, {"step": 2}, {})
    loaded = load_checkpoint(path)
    assert loaded is not None
    assert loaded[0] == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    """Each would leave a file as large as a checkpoint; what others write or named so stays."""
    path = tmp_path / "state"
    write = "import os, pathlib, signal, sys\n"
    write += "from trainer.learning import checkpoint\n"
    write += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
    write += "checkpoint.write_atomically(pathlib.Path(sys.argv[1]), b'x')\n"
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", write, str(path)], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    others = {f".state.{os.getppid()}.tmp", ".state.tmp", ".other.1.tmp", "state.previous"}
    for name in others:
        (tmp_path / name).touch()
    remove_leftovers(path)
    assert {each.name for each in tmp_path.iterdir()} == others
    remove_leftovers(tmp_path / "nowhere" / "state")


def test_damage_is_noticed(tmp_path: Path) -> None:
    """Truncated and changed files are refused."""
    path = tmp_path / "state"
    save_checkpoint(path, {"step": 1}, {"a": np.arange(10)})
    blob = path.read_bytes()
    for bad in (b"", blob[:-1], blob[:60], blob[:-5] + b"xxxxx", b"garbage"):
        write_atomically(path, bad)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


def test_the_generation_before_is_kept_whatever_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hard links or without; the first save has none before it."""

    def unsupported(*_names: object) -> None:
        raise OSError(95, "Operation not supported")

    for number in (1, 2, 3):
        save_checkpoint(tmp_path / "state", {"step": number}, {}, keep_previous=True)
        if number == 2:
            monkeypatch.setattr(os, "link", unsupported)
    loaded = load_checkpoint(previous_of(tmp_path / "state"))
    assert loaded is not None
    assert loaded[0] == {"step": 2}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["state", "state.previous"]


def test_read_only_disk_is_a_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There even the removal of a file that was never made fails."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CheckpointError, match="Read-only"):
        save_checkpoint(tmp_path / "state", {}, {})


def test_what_is_no_file_is_damaged_and_not_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody writes to would be read for ever, a device without end too."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "circle", "folder"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_checkpoint(tmp_path / name)
