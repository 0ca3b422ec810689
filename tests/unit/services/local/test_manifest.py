"""The file that tells where a running mesh is."""

from __future__ import annotations

import os
import pathlib
import time

import pytest

from services.local.errors import CommandError, InputError
from services.local.manifest import (
    Manifest,
    find_mesh,
    run_folder,
    running_names,
    started_ticks,
)


def manifest_of(pid: int, started: int) -> Manifest:
    """A manifest of a mesh with one router."""
    return Manifest("m", pid, started, "reference", "c.toml", ("127.0.0.1:7410",), {}, {}, {}, {})


def test_a_running_mesh_is_found_by_name(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest of a living supervisor is read back, that of an ended one is not."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    manifest_of(os.getpid(), started_ticks(os.getpid())).write(run_folder("m"))
    assert find_mesh("m").routers == ("127.0.0.1:7410",)
    assert running_names() == ["m"]
    # A process id that was given to another process since then does not count.
    manifest_of(os.getpid(), started_ticks(os.getpid()) - 1).write(run_folder("m"))
    with pytest.raises(CommandError, match="not running any more"):
        find_mesh("m")
    (run_folder("m") / "mesh.json").write_text("{")
    with pytest.raises(CommandError, match="no file of a mesh"):
        find_mesh("m")
    with pytest.raises(CommandError, match="tiercel up"):
        find_mesh("n")
    with pytest.raises(InputError, match="mesh name"):
        find_mesh("../etc")


def test_the_start_of_a_process_is_no_time_of_day() -> None:
    """It counts from the start of the machine, which no setting of a clock changes."""
    up_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert 0 < started_ticks(os.getpid()) <= up_s * os.sysconf("SC_CLK_TCK")
    assert started_ticks(2**22 + 1) == -1
