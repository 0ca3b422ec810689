"""What a benchmark measured, and what is made of it: medians, spread, ratio, budget."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from services.bench.budgets import BUDGETS, Budget

CPU_OF = "CPU us of "
"""How the parts begin that say what a request costs a process."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """One metric of one run; R = rounds.

    Attributes:
        name: Its name in ``budgets.BUDGETS``.
        value_R: One number per round, in the budget's unit.
        reference_R: What it stands beside, measured in turns with it in the same rounds and the
            same unit; empty for none.
        parts: Further numbers to show, by name with unit.
        note: What a reader must know to judge it, in one line.
        series: How it grows: points (size, value) by name of the line, for plots.
    """

    name: str
    value_R: Sequence[float]
    reference_R: Sequence[float] = ()
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""
    series: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)

    @property
    def ratio_R(self) -> list[float]:
        """Value over reference, round by round: what disturbs a round disturbs both sides.

        A reference that is not above 0 (a difference that drowned in noise) makes it infinite.
        """
        if not self.reference_R:
            return []
        pairs = zip(self.value_R, self.reference_R, strict=True)
        return [value / reference if reference > 0 else math.inf for value, reference in pairs]

    def judged(self) -> dict[str, Any]:
        """Returns it beside its budget, JSON-ready; medians, and half of highest minus lowest."""
        budget = BUDGETS[self.name]
        ratio_R = self.ratio_R
        judged = ratio_R if budget.of == "ratio" else list(self.value_R)
        return {
            "what": budget.what,
            "beside": budget.beside,
            "unit": budget.unit,
            "value": statistics.median(self.value_R),
            "value_spread": _spread(self.value_R),
            "reference": statistics.median(self.reference_R) if self.reference_R else None,
            "reference_spread": _spread(self.reference_R) if self.reference_R else None,
            "ratio": _finite(statistics.median(ratio_R)) if ratio_R else None,
            "ratio_spread": _spread(ratio_R) if ratio_R else None,
            "budget": budget.text,
            "within_budget": within(budget, statistics.median(judged)),
            "rounds": len(self.value_R),
            "parts": dict(self.parts),
            "note": self.note,
            "series": {name: [list(point) for point in line] for name, line in self.series.items()},
        }


def within(budget: Budget, value: float) -> bool | None:
    """Says whether a number keeps a budget; None where there is none."""
    if budget.limit is None:
        return None
    return value <= budget.limit if budget.is_ceiling else value >= budget.limit


def rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Returns judged readings as a Markdown table, line by line."""
    lines = [
        "| metric | what | measured | beside | ratio | budget | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in metrics.items():
        what = f"{each['what']}, {each['unit']}" + (each["beside"] and f"; {each['beside']}")
        cells = [
            f"`{name}`",
            what,
            number(each["value"], each["value_spread"]),
            number(each["reference"], each["reference_spread"]),
            number(each["ratio"], each["ratio_spread"]),
            each["budget"].replace("<=", "≤").replace(">=", "≥"),
            {True: "yes", False: "**no**", None: "-"}[each["within_budget"]],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def number(value: float | None, spread: float | None) -> str:
    """Returns a median with its spread, for tables."""
    if value is None:
        return "-"
    if not spread:
        return plain(value)
    return f"{plain(value)} ± " + (f"{spread:,.0f}" if spread >= 10 else f"{spread:.2g}")


def plain(value: float) -> str:
    """Returns a number for tables."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> float | None:
    return _finite((max(values) - min(values)) / 2.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
