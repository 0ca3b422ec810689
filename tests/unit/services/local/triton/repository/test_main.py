"""The command that writes a repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from services.local.triton.repository.__main__ import main
from tests.unit.deploy.manifests import ROOT

PROFILE = ROOT / "profiles" / "opt-a100.toml"


def test_command_prints_endpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the command prints is TOML that the mesh can read."""
    main(["paced", "--out", str(tmp_path / "fleet"), "--profile", str(PROFILE), "--devices", "2"])
    entries = tomllib.loads(capsys.readouterr().out)["mesh"]["endpoints"]
    assert [entry["device"] for entry in entries] == ["gpu0", "gpu1"]
    assert entries[1]["models"]["large"] == "gpu1_large"


def test_command_leaves_what_is_there_to_who_serves_it(tmp_path: Path) -> None:
    """A second run changes nothing; another fleet, or half a repository, is written anew."""
    out, devices = tmp_path / "fleet", ["--devices", "1"]
    command = ["paced", "--out", str(out), "--profile", str(PROFILE)]
    main([*command, *devices])
    clock = out / "state" / "gpu0.clock"
    clock.touch()
    before = {path: path.stat().st_ino for path in out.rglob("*")}
    main([*command, *devices])
    assert {path: path.stat().st_ino for path in out.rglob("*")} == before
    main([*command, "--devices", "2"])
    assert not clock.exists()
    clock.touch()
    (out / "generated-by-tiercel").write_text("")  # as an interrupted run leaves it
    main([*command, "--devices", "2"])
    assert not clock.exists()


def test_command_reports_a_mistake_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing profile is one line on stderr and exit code 2."""
    with pytest.raises(SystemExit) as caught:
        main(["paced", "--out", str(tmp_path / "f"), "--profile", str(tmp_path / "none.toml")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
