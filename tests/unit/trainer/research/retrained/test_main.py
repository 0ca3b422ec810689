"""The command's tables and its errors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.trainer.research.retrained.studies import snapshot
from trainer.research.retrained.__main__ import main, markdown

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


def test_tables_have_every_shift(study: dict[str, Any]) -> None:
    """One line per point with the safety net on, one per training."""
    lines = markdown(study).splitlines()
    assert sum(line.startswith("| 2 routers, stale") for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["SNAPSHOT", "--rounds", "0"], "--rounds"),
        (["SNAPSHOT", "--shift", "tides"], "'tides'; known: 'nominal'"),
        (["DAMAGED"], "SNAPSHOT_"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before any training."""
    (tmp_path / "s").write_bytes(snapshot())
    (tmp_path / "d").write_bytes(b"\x08")
    places = {"SNAPSHOT": str(tmp_path / "s"), "DAMAGED": str(tmp_path / "d")}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
