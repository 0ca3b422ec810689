"""Progress of long commands, on a terminal and in a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from services.cli.output import note


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Says what is waited for: on a terminal with the seconds so far, into a file once."""
    terminal = Console(stderr=True, highlight=False)
    if not terminal.is_terminal:
        note(text)
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=terminal, transient=True) as display:
        display.add_task(text, total=None)
        yield


class ProgressLines:
    """Progress for a file or a pipe: a line on standard error for each tenth of each stage."""

    def __init__(self) -> None:
        """Starts the clock that lines tell."""
        self._start_s = time.monotonic()
        self._tenths: dict[str, int] = {}

    def show(self, stage: str, share: float, detail: str = "") -> None:
        """Takes in that `share` (0 to 1) of a stage is done; writes if that is another tenth."""
        tenth = int(10.0 * share + 1e-9)
        if self._tenths.get(stage) == tenth:
            return
        self._tenths[stage] = tenth
        parts = (f"{stage} {10 * tenth}%", detail, f"{time.monotonic() - self._start_s:.0f} s")
        note("  ".join(part for part in parts if part))


class StageProgress:
    """One bar per stage: what runs, how much of it is done, time left; into a file, lines."""

    def __init__(self) -> None:
        """Starts nothing yet; writes to standard error, where it is in nobody's way."""
        terminal = Console(stderr=True, highlight=False)
        self._lines = None if terminal.is_terminal else ProgressLines()
        self._progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=terminal,
            disable=self._lines is not None,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> StageProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, stage: str, share: float, detail: str = "") -> None:
        """Takes in that `share` (0 to 1) of a stage is done."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=1.0, detail=detail)
        self._progress.update(self._tasks[stage], completed=share, detail=detail)
        if self._lines is not None:
            self._lines.show(stage, share, detail)

    def show_requests(self, stage: str, done: float, total: float) -> None:
        """Takes in how much of a stage is done, in simulated requests."""
        millions = f"{done / 1e6:.1f} of {total / 1e6:.1f} M requests"
        self.show(stage, done / max(total, 1.0), millions)
