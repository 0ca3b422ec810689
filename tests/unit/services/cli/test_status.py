"""``tiercel status``."""

from __future__ import annotations

import json

import pytest

from services.cli.app import run


def test_status_says_what_each_unreachable_part_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Status prints what it knows before it fails."""
    assert run(["status", "--router", "127.0.0.1:1", "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)["routers"][0]
