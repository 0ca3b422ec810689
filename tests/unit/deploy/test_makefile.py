"""The Makefile: what an interrupt left half made is made again."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.deploy.manifests import ROOT

# Makes environments, with a pip that does nothing, and notes them.
_PYTHON = """#!/bin/bash
[ "$1 $2" = "-m venv" ] || exit 1
mkdir -p "$3/bin"
printf '#!/bin/sh\\nexit 0\\n' >"$3/bin/python"
chmod +x "$3/bin/python"
echo "$3" >>made
"""
_NEEDED = (
    "pyproject.toml",
    "services/client/pyproject.toml",
    "services/client/tiercel/common/v1/common_pb2.py",
    "requirements/constraints.txt",
    "protos/a.proto",
    ".ci/system-packages",
    "build/.system-packages-up-to-date",
)


def _write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("pip_ends_with", "made"),
    [(None, [".venv"]), (1, [".venv"]), (0, [])],
    ids=["nothing", "half", "whole"],
)
def test_an_environment_without_pip_is_made_again(
    pip_ends_with: int | None, made: list[str], tmp_path: Path
) -> None:
    """An interrupted `python -m venv` leaves an interpreter that has no pip yet."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in _NEEDED:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    _write_program(tmp_path / "python", _PYTHON)
    if pip_ends_with is not None:
        _write_program(tmp_path / ".venv/bin/python", f"#!/bin/sh\nexit {pip_ends_with}\n")
    outer = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", ".venv/.demo-up-to-date", f"PYTHON={tmp_path / 'python'}"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=outer,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = tmp_path / "made"
    assert (notes.read_text(encoding="utf-8").split() if notes.exists() else []) == made
