"""The page of an evaluation."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from trainer.evaluation.report.page import report_figures, write_page


def test_page_stands_alone_and_shows_every_plot(
    report: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """Nothing is fetched from outside, and there is a plot for each part of the protocol."""
    write_page(tmp_path / "report.html", report, report_figures(report))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 7
    assert page.index(report["answer"]["sentence"]) < page.index("<svg") < page.index("<table")
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert "not judged" in page
    assert "nan" not in re.findall(r"<td[^>]*>([^<]*)</td>", page)
