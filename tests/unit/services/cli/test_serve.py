"""``tiercel serve``."""

from __future__ import annotations

import runpy
import sys

import pytest

from services.cli.app import run


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Packages run as programs, with their arguments; nothing is run."""
    found: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(sys, "argv", ["tiercel"])
    monkeypatch.setattr(
        runpy, "run_module", lambda package, run_name: found.append((package, sys.argv[1:]))
    )
    return found


def test_every_service_gets_its_arguments_as_they_are(
    started: list[tuple[str, list[str]]],
) -> None:
    """Options are the service's own, its help too."""
    assert run(["serve", "router", "--config", "a.toml", "--set", "mesh.name=b"]) == 0
    assert run(["serve", "monitor", "--help"]) == 0
    assert run(["serve", "trainer"]) == 0
    assert run(["serve", "openai-door", "--listen", "127.0.0.1:0"]) == 0
    assert started == [
        ("services.router_inference", ["--config", "a.toml", "--set", "mesh.name=b"]),
        ("services.load_monitor", ["--help"]),
        ("services.trainer", []),
        ("services.openai_door", ["--listen", "127.0.0.1:0"]),
    ]


def test_the_settings_file_of_the_environment_is_followed_unless_another_is_given(
    started: list[tuple[str, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last --config wins, as argparse has it."""
    monkeypatch.setenv("TIERCEL_CONFIG", "e.toml")
    assert run(["serve", "router", "--config", "a.toml"]) == 0
    assert started[0][1] == ["--config", "e.toml", "--config", "a.toml"]
