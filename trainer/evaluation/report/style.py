"""How every plot and page of Tiercel looks, and how a figure becomes a file or a part of a page."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

GREEN, AMBER, RED, VIOLET, BLUE = "#3b9c6e", "#e0a82e", "#c8553d", "#7b5ea7", "#2c6fbb"
TIER_COLORS = ("#d6e4f2", "#7fb0dc", "#1d5f9f", "#0b2a4a", "#8a929b")
"""Lowest quality first: a larger tier is darker, and none looks good or bad."""
TIER_HATCHES = ("", "//", "..", "xx", "--")
"""Told apart without colour."""
INK, SOFT, GRID = "#20242a", "#5d6672", "#e3e6ea"
BAND = "#f3efe4"
"""Behind what stands out: a phase in a plot, a row in a table."""
FAINT, PALE = "#9aa3ad", "#d7dbe0"
"""Lines and areas that only accompany others."""
PAGE_COLORS = {
    "ink": INK,
    "soft": SOFT,
    "line": "#dfe3e8",
    "paper": "#fbfbf9",
    "code": "#eef0f2",
    "band": BAND,
    "good": "#1f7a4d",
    "bad": "#b23b2a",
}
"""Variables of the pages' style sheet."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "tiercel",
}


def save(figure: Figure, stem: pathlib.Path) -> None:
    """Writes ``stem.png`` and ``stem.svg``."""
    with mpl.rc_context(STYLE):
        figure.savefig(stem.with_suffix(".png"), dpi=130)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def inline_svg(figure: Figure) -> str:
    """SVG text to put into a page, without the XML head."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
