"""``python -m trainer.research.transfer``: options, files, page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from router.dqn.snapshot import load_snapshot, save_snapshot
from router.features import SCHEMA
from trainer.research.transfer.__main__ import main
from trainer.shipped import shipped

pytestmark = pytest.mark.timeout(900)  # the first run on a machine compiles


def test_a_world_from_requests_to_the_page(tmp_path: Path) -> None:
    """A snapshot that lies in the folder stands for the trained one."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    snapshot = load_snapshot(shipped("policies", "opt-a100.safetensors").read_bytes(), SCHEMA)
    fleet = {**snapshot.fleet, "devices": snapshot.fleet["devices"][:1]}
    blob = save_snapshot(replace(snapshot, fleet=fleet))
    (folder / "1-device.safetensors").write_bytes(blob)
    record, rows = tmp_path / "transfer.md", tmp_path / "rows.json"
    options = ["--world", "1 device", "--seeds", "1", "--requests", "1", "--workers", "1"]
    options += ["--policies", "static-small", "--snapshots", str(folder)]
    assert main([*options, "--record", str(record), "--json", str(rows)]) == 0
    text = record.read_text("utf-8")
    assert "| 1.000 ± 0.000 | 1.000 | yes | - |" in text
    assert {row["policy"] for row in json.loads(rows.read_text("utf-8"))} == {
        "shipped",
        "trained for it",
        "static-small",
    }


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--rounds", "0"], "--rounds"),
        (["--world", "nowhere"], "nowhere"),
        (["--world", "64 devices", "--policies", "prise"], "prise"),
        (["--world", "64 devices", "--snapshot", "README.md"], "README.md"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a traceback."""
    assert main(options) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
