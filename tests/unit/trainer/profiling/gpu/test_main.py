"""The script that measures a card, run on this processor: its file, options and errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from router.profile import parse_profile
from trainer.profiling.gpu.__main__ import main


def test_the_script_writes_a_profile_that_services_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a processor with tiny shapes: a file with errors and versions, and the points."""
    out, points = tmp_path / "p.toml", tmp_path / "points.json"
    options = ["--device", "cpu", "--shapes", "tiny", "--point-s", "0", "--max-batch", "4"]
    options += ["--max-prompt-tokens", "128", "--out", str(out), "--points", str(points)]
    assert main(options) == 0
    profile = parse_profile(out.read_text(), "p.toml", ("small", "medium", "large"))
    assert profile.name == "tiny-cpu"
    assert profile.source == "measured"
    assert f"torch {torch.__version__}" in profile.description
    assert "error of the fit" in profile.description
    assert profile.tiers["large"].max_batch == 4
    assert profile.tiers["large"].max_kv_tokens is None
    measured = json.loads(points.read_text())["tiers"]["small"]
    assert all(point["taken_s"] > 0 for point in measured)
    assert "written:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no CUDA device"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "meta"], "neither cuda, cuda:N nor cpu"),
    ],
)
def test_an_unusable_device_is_one_line(
    options: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without a card, or with a device nobody knows, one line says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(options) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--tiers", "huge"], ["--max-batch", "0"], ["--point-s", "-1"], ["--point-s", "x"]]
)
def test_a_wrong_option_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each option says its limits."""
    with pytest.raises(SystemExit) as caught:
        main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_an_unwritable_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder in the place of the file is named."""
    options = ["--device", "cpu", "--shapes", "tiny", "--tiers", "small", "--point-s", "0"]
    assert main([*options, "--max-batch", "2", "--out", str(tmp_path)]) == 1
    assert f"gpu_profile: {tmp_path}: cannot be written" in capsys.readouterr().err
