"""`tiercel setup-triton` with pip replaced: what it would install, what it says of a failure."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from services.cli.app import run
from services.local.triton import environment
from trainer.shipped import shipped


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that are run; the last one fails."""
    made: list[tuple[str, ...]] = []

    def step(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[bytes]:
        made.append(command)
        return subprocess.CompletedProcess(command, returncode=len(made) - 1)

    monkeypatch.setattr(subprocess, "run", step)
    monkeypatch.setattr(environment, "checkout", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return made


def test_it_installs_the_shipped_pins(
    steps: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    """An environment, then Triton by the requirements that travel with the product."""
    assert run(["setup-triton"]) == 1
    make, install = steps
    assert make[1:3] == ("-m", "venv")
    assert install[0] == f"{make[3]}/bin/python"
    assert str(shipped("requirements", "triton.txt")) in install
    assert str(shipped("requirements", "triton-constraints.txt")) in install
    assert "no Triton environment was made: pip failed" in capsys.readouterr().err
