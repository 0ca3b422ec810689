"""Progress of long commands."""

from __future__ import annotations

import contextlib
import os
import re
import sys

import pytest

from services.cli.progress import ProgressLines, StageProgress, waiting


def test_progress_into_a_file_is_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """However often it is told, each stage writes when another tenth is done, from 0 to 100 %."""
    lines = ProgressLines()
    for done in range(101):
        lines.show("sweep", done / 100, "some")
        lines.show("shifts", done / 200)
    found = capsys.readouterr().err.splitlines()
    sweep = [line for line in found if line.startswith("sweep")]
    assert [line.split("%")[0] for line in sweep] == [f"sweep {10 * i}" for i in range(11)]
    assert all(re.fullmatch(r"sweep \d+%  some  \d+ s", line) for line in sweep)
    assert len(found) == 11 + 6


def test_an_evaluation_shows_progress_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Standard error that is no terminal gets lines; standard output is for results alone."""
    with StageProgress() as display:
        display.show_requests("sweep", 0.0, 4e6)
        display.show_requests("sweep", 2e6, 4e6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split("  ")[0] for line in captured.err.splitlines()] == ["sweep 0%", "sweep 50%"]


def test_what_is_waited_for_is_said_once_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """And with the seconds so far on a terminal, which goes without a trace."""
    with waiting("compiling"):
        pass
    assert capsys.readouterr().err == "compiling\n"
    primary, secondary = os.openpty()
    with os.fdopen(secondary, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("TERM", "xterm")
        with waiting("compiling"):
            pass
    shown = b""
    # A terminal hands out what was written in pieces, and fails once all of it has been read.
    with contextlib.suppress(OSError):
        while piece := os.read(primary, 10_000):
            shown += piece
    os.close(primary)
    assert re.search(rb"compiling .*0:00:00", shown)
