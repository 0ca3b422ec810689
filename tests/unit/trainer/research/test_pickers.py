"""The command that compares endpoint pickers, and its table."""

from __future__ import annotations

import pytest

from trainer.evaluation.pickers import PickerRow
from trainer.evaluation.statistics import interval
from trainer.research.pickers import main, picker_table


def test_table_has_a_line_per_row() -> None:
    """Below two lines of header; gains are in percent."""
    one = interval([0.25, 0.25])
    row = PickerRow("own", "static-large", "random", 40.0, one, 0.5, one, one, one, 50.0)
    lines = picker_table([row, row]).splitlines()
    assert len(lines) == 4
    assert "| 25.0 ± 0.0 |" in lines[2]


def test_bad_seed_count_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2 and one line that names the option."""
    assert main(["--seeds", "0"]) == 2
    assert capsys.readouterr().err.startswith("--seeds must be at least 1")
