"""Environments of outside programs."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Sequence
from typing import Any

import pytest

from services.bench.environment import make_environment
from services.local.errors import CommandError


def test_a_package_that_cannot_be_had_is_one_line(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line of the installer is the reason."""
    failed = subprocess.CompletedProcess([], 1, "", "looking\nERROR: no such version\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(CommandError, match=r"^a==1 cannot be had: ERROR: no such version$"):
        make_environment(tmp_path / "environment", "a==1")


def test_an_environment_is_made_anew_only_for_other_versions(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for a file of constraints, and again when that says something else."""
    folder, constraints = tmp_path / "environment", tmp_path / "versions.txt"
    commands: list[Sequence[str]] = []

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder.mkdir(exist_ok=True)
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    for text in ("a==1\n", "a==1\n", "a==2\n"):
        constraints.write_text(text)
        assert make_environment(folder, "a", constraints) == folder
    made, installed, *again = commands
    assert made[1:] == ["-m", "venv", "--clear", str(folder)]
    assert installed[-3:] == ["--constraint", str(constraints), "a"]
    assert again == [made, installed]
