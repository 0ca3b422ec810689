"""What messages show of values that others wrote: never long, never more than a line."""

from __future__ import annotations

_LONGEST_VALUE = 80
_LONGEST_LINE = 300


def shown(value: object) -> str:
    """Returns a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def without_controls(text: str) -> str:
    """Returns a text of some lines as a terminal may show it: what would steer one is a space."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else " " for each in text)


def one_line(text: str) -> str:
    """Returns a text as part of a message."""
    flat = without_controls(text[:_LONGEST_LINE]).replace("\n", " ")
    return flat if len(text) <= _LONGEST_LINE else f"{flat[: _LONGEST_LINE - 3]}..."
