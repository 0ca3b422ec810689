"""``tiercel load``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter


def test_load_accounts_for_everything(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """The command runs the generator as a process of its own and sums its records up."""
    out = tmp_path / "run.npz"
    arguments = ["load", "--router", router[1], "--phases", "calm:0.3@40,burst:0.3@100"]
    assert run([*arguments, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["total"]["offered"] == summary["total"]["on_time"] > 10
    assert set(summary["phases"]) == {"calm", "burst"}
    assert out.exists()
