"""``tiercel status``."""

from __future__ import annotations

import json

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint


def test_status_says_what_each_unreachable_part_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Status prints what it knows before it fails."""
    assert run(["status", "--router", "127.0.0.1:1", "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)["routers"][0]


def test_a_part_that_is_gone_is_an_exit_code(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the mesh has must answer, unless --require names less or more."""
    known = ["--router", router[1], "--monitor", "127.0.0.1:1"]
    assert run(["status", *known, "--json"]) == 1
    assert "no answer: monitor" in complaint(capsys)
    assert run(["status", *known, "--require", "router", "--json"]) == 0
    capsys.readouterr()
    assert run(["status", *known, "--require", "router,trainer", "--json"]) == 1
    assert "no answer: trainer" in complaint(capsys)
    assert run(["status", *known, "--require", "redis"]) == 2
    assert "--require" in complaint(capsys)
