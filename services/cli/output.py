"""Printing: tables and text for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from router.messages import without_controls


class _Console(Console):
    """Shows no character that would steer the terminal: ids and reasons are other people's."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yields what is shown; what rich itself steers the terminal by stays."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else without_controls(text), style, control)


def console() -> Console:
    """Console on standard output; a pipe gets a width that cuts nothing off.

    Text is shown as it is: an address of IPv6 has brackets, and a reason may be anything.
    """
    width = None if sys.stdout.isatty() else 140
    return _Console(highlight=False, markup=False, emoji=False, width=width)


def note(text: str) -> None:
    """One line for the user on standard error, so that standard output stays parseable."""
    print(without_controls(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """Prints JSON, numbers rounded to what was measured."""
    print(json.dumps(value, indent=2, default=str))


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, numeric_from: int = 1
) -> Table:
    """Makes a table; columns from ``numeric_from`` on are aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index >= numeric_from else "left")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def share(value: float | None) -> str:
    """A fraction with three digits; a dash for none."""
    return "-" if value is None else f"{value:.3f}"


def milliseconds(value_ms: float | None) -> str:
    """Milliseconds without digits after the point; a dash for none."""
    return "-" if value_ms is None else f"{value_ms:.0f}"
