"""The command and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.research.crosscheck.__main__ import main
from trainer.research.crosscheck.run import OWN

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_the_command_writes_rows_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command: rows as JSON, a line per learner."""
    monkeypatch.setattr("trainer.research.crosscheck.__main__.held_rps", lambda *_: 40.0)
    monkeypatch.setattr("trainer.research.crosscheck.__main__.LOADS", (0.5, 1.0))
    out = tmp_path / "rows.json"
    assert main(["--steps", "200", "--seeds", "1", "--learners", OWN, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["crosscheck"]
    assert [row["load"] for row in rows[:2]] == [0.5, 1.0]
    assert "double-dqn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "missing.toml"], "crosscheck: missing.toml: No such file"),
        (["--quality", "profiles/opt-a100.toml"], "crosscheck: profiles/opt-a100.toml: quality"),
    ],
)
def test_a_wrong_file_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read is named."""
    assert main(options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--learners", "magic"], ["--steps", "0"], ["--seeds", "x"]])
def test_a_wrong_option_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each option says its limits."""
    with pytest.raises(SystemExit):
        main(options)
    assert options[0] in capsys.readouterr().err
