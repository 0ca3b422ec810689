"""How every plot of Tiercel looks, and how a figure becomes a file or a part of a page."""

from __future__ import annotations

import io
import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

TIER_COLORS = ("#3b9c6e", "#e0a82e", "#c8553d", "#7b5ea7", "#4a7ab5")
INK, SOFT, GRID = "#20242a", "#6b7480", "#e3e6ea"
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
