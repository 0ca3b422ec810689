"""``tiercel calibrate`` on tiers that are not ours."""

from __future__ import annotations

import pathlib

import pytest

from router.profile import parse_profile
from services.cli.app import run
from tests.fakes.triton import FakeTriton, Received, Script
from tests.unit.services.cli.said import complaint


def measured(mesh: pathlib.Path, *options: str) -> int:
    """The exit code of a short measurement."""
    out = str(mesh.with_name("p.toml"))
    return run(["calibrate", "--config", str(mesh), "--out", out, "--run-s", "0.2", *options])


@pytest.fixture
def streaming(triton: FakeTriton) -> None:
    """Two tiers, the one listed first the slower; how many run at once is their own word."""
    triton.parameters = {"tiercel_max_batch": "2"}
    triton.scripts = {"llm-70b": Script(step_s=0.02), "mini": Script(step_s=0.005)}


@pytest.mark.usefixtures("streaming")
def test_the_profile_has_the_models_name_and_their_own_order(
    foreign_mesh: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever order endpoints list, each tier has its costs; bytes per token are compared."""
    lengths = ("--prompt-lengths", "10,40", "--bytes-per-token", "8")
    assert measured(foreign_mesh, *lengths, "--most-error", "10") == 0
    profile = parse_profile(foreign_mesh.with_name("p.toml").read_text(), "p", ("mini", "big"))
    assert profile.name == "llm-70b+mini"
    assert profile.tiers["big"].step_s > 2 * profile.tiers["mini"].step_s
    said = capsys.readouterr().err
    assert "8.00 bytes per token: set mesh.bytes_per_token, which is 4" in said
    assert "mini: does not count prompt tokens" in said


@pytest.mark.usefixtures("streaming")
def test_a_fit_that_is_off_writes_nothing(
    foreign_mesh: pathlib.Path, triton: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 1; tier and range are named."""

    def on_request(received: Received) -> None:
        triton.scripts["mini"].first_s = 0.2 if received.prompt.count(" ") == 19 else 0.01

    triton.on_request = on_request
    assert measured(foreign_mesh, "--prompt-lengths", "10,20,40") == 1
    said = capsys.readouterr().err
    assert "mini: prompts of" in said
    assert "no profile is written" in said
    assert not foreign_mesh.with_name("p.toml").exists()


def test_lengths_that_are_none_are_named(
    foreign_mesh: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is measured."""
    for text in ("10,x", "0", "10,", "9" * 5_000):
        assert measured(foreign_mesh, "--prompt-lengths", text) == 2
        assert "--prompt-lengths: must be numbers of words" in complaint(capsys)


def test_what_is_wrong_here_is_told_before_a_server_is_asked(
    foreign_mesh: pathlib.Path, triton: FakeTriton, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a file is no less one while the servers are away."""
    alone = foreign_mesh.with_name("alone.toml")
    alone.write_text(foreign_mesh.read_text().replace(triton.address, "127.0.0.1:9"))
    prompts = foreign_mesh.with_name("p.jsonl")
    prompts.write_text("no JSON\n")
    assert measured(alone, "--prompts", str(prompts)) == 2
    assert "p.jsonl: line 1: not JSON" in complaint(capsys)
    assert measured(alone, "--prompt-lengths", "0") == 2
    assert "--prompt-lengths: must be numbers of words" in complaint(capsys)
