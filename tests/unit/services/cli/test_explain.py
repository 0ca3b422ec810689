"""``tiercel explain``."""

from __future__ import annotations

import json

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint


def test_a_decision_is_shown_with_the_choice_first(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Scores and predictions of every candidate; one that was not allowed has no score."""
    assert run(["explain", "known", "--router", router[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "large@e0 by dqn@1" in lines[0]
    order = [line for line in lines[1:] if "@e0" in line]
    assert "large@e0" in order[0]
    assert "0.2500" in order[0]
    assert "small@e0" in order[1]


def test_an_explanation_for_machines_has_the_features(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """By name, for every candidate; the router that knows is found among several."""
    addresses = ["--router", "127.0.0.1:1", "--router", router[1]]
    assert run(["explain", "known", *addresses, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["choice"] == "large@e0"
    assert [each["features"]["quality"] for each in found["candidates"]] == [0.5, 1.0]
    assert [each["score"] for each in found["candidates"]] == [None, 0.25]


def test_a_request_nobody_knows_is_bad_input(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is the router's."""
    assert run(["explain", "lost", "--router", router[1]]) == 2
    assert "no such request" in complaint(capsys)
