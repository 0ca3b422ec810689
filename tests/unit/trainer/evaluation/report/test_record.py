"""The record that documents quote."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from trainer.evaluation.report.page import report_figures
from trainer.evaluation.report.record import write_record


def test_record_is_small_and_names_its_pictures(
    report: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """Every picture it shows lies beside it; all of it is below half a megabyte."""
    write_record(tmp_path, report, report_figures(report))
    text = (tmp_path / "evaluation.md").read_text()
    pictures = re.findall(r"\]\((evaluation-\w+\.png)\)", text)
    assert len(pictures) == 6
    assert sum((tmp_path / name).stat().st_size for name in pictures) < 500_000
    assert "| price |" in text
