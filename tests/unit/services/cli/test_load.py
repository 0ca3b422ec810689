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


def test_prompts_have_the_lengths_that_were_asked_for(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Prompts of so many words, each four bytes with its space; answers limited as drawn."""
    arguments = ["load", "--router", router[1], "--rate", "60", "--duration", "0.3"]
    lengths = ["--prompt-tokens", "124", "--output-tokens", "drawn", "--mix", "piqa"]
    assert run([*arguments, *lengths, "--out", str(tmp_path / "run.npz")]) == 0
    specs = router[0].specs
    assert {len(spec.prompt.split()) for spec in specs} == {124}
    assert {len(spec.prompt) for spec in specs} == {4 * 124 - 1}
    limits = {spec.max_output_tokens for spec in specs}
    assert limits <= set(range(4, 13))
    assert len(limits) > 1


@pytest.mark.parametrize("option", ["--prompt-tokens", "--output-tokens"])
@pytest.mark.parametrize("text", ["0", "-3", "many", "1e3", "9" * 5_000, "16385", "\u0664"])
def test_lengths_that_are_none_are_one_line(
    option: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is named with what it takes."""
    assert run(["load", "--router", "127.0.0.1:9", option, text]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{option}: expected a number of tokens from 1 to 16384, or drawn" in error
    assert len(error) < 300
