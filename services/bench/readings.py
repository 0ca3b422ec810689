"""What a benchmark measured, and what is made of it: medians, spread, ratio, budget."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from services.bench.budgets import BUDGETS, Budget


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


def within(budget: Budget, value: float) -> bool:
    """Says whether a number keeps a budget."""
    return value <= budget.limit if budget.is_ceiling else value >= budget.limit


def _spread(values: Sequence[float]) -> float | None:
    return _finite((max(values) - min(values)) / 2.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
