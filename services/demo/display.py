"""What the demo shows while it runs: one line per finished step, a live view at the bottom."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.common.live import LiveFacts
from services.local.live_view import render

REFRESH_PER_S = 4


class Display:
    """Progress bars with the live view below; on a pipe only the finished steps are printed."""

    def __init__(self, console: Console) -> None:
        """Draws nothing yet."""
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._facts: RenderableType | None = None
        # Drawn from the event loop's own updates: a refresh thread would compete for the core.
        self._live = Live(self._bars, console=console, auto_refresh=False, transient=True)
        self._drawn_s = 0.0
        self._bar = self._bars.add_task("", total=1.0, note="", visible=False)
        self._began_s = 0.0

    def __enter__(self) -> Self:
        """Takes the bottom of the terminal."""
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives the terminal back."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live part."""
        self.console.print(text, highlight=False, markup=False)

    def begin(self, what: str) -> None:
        """Starts a step with a bar of its own."""
        self._began_s = time.monotonic()
        self._bars.reset(self._bar, description=what, total=1.0, note="", visible=True)
        if not self.console.is_terminal:
            self.say(f"... {what}")
        self._draw(force=True)

    def update(self, share: float, note: str = "") -> None:
        """Moves the bar."""
        self._bars.update(self._bar, completed=share, note=note)
        self._draw()

    def done(self, text: str) -> None:
        """Ends the step with a line that stays."""
        self._bars.update(self._bar, visible=False)
        took_s = time.monotonic() - self._began_s
        self.say(f" ✓  {text}  ({took_s:.0f} s)")

    def show(self, facts: LiveFacts, tiers: tuple[str, ...]) -> None:
        """Puts the newest facts below the bar."""
        self._facts = render(facts, tiers)
        self._draw()

    def hide(self) -> None:
        """Takes the live view away."""
        self._facts = None
        self._draw(force=True)

    def _draw(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if not self._live.is_started or (not force and now_s - self._drawn_s < 1 / REFRESH_PER_S):
            return
        self._drawn_s = now_s
        parts = [self._bars] if self._facts is None else [self._bars, self._facts]
        self._live.update(Group(*parts), refresh=True)
