"""What targets are judged by: the learned policy's rows, and how a judgement is written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.evaluation.rows import Row

NO_LEARNED = "no learned policy was evaluated"
NO_BOUND = "no bound is known"


class View:
    """The learned policy's rows, safety net on, and those beside them."""

    def __init__(self, report: Mapping[str, Any], learned: str, large: str, small: str) -> None:
        """Takes the results so far and the names that targets speak of."""
        self.report, self.learned, self.large, self.small = report, learned, large, small

    def rows(self, part: str, policy: str = "", *, net: bool = True) -> list[Row]:
        """Returns a part's rows of a policy, the learned one unless named."""
        wanted = policy or self.learned
        return [
            row for row in self.report[part] if row["policy"] == wanted and row["safety_net"] is net
        ]

    def baselines(self, part: str) -> list[Row]:
        """Returns a part's rows of hand-made policies, safety net on."""
        own = self.report["not_baselines"]
        return [r for r in self.report[part] if r["policy"] not in own and r["safety_net"]]


Judge = Callable[[View], Row]


def judged(name: str, target: str, value: Any, met: bool | None, detail: str) -> Row:
    """Returns a headline; `met` None: not judged."""
    value = round(value, 5) if isinstance(value, float) else value
    return {"name": name, "target": target, "value": value, "met": met, "detail": detail}


def missing(name: str, target: str, why: str) -> Row:
    """Returns the headline of a target that this run cannot judge."""
    return judged(name, target, None, None, f"not judged: {why}")


def interval_text(row: Row, column: str, form: str = ".3f") -> str:
    """Returns the interval of a number in words."""
    ends = row[f"{column}_ci95"]
    return f"interval {ends[0]:{form}} to {ends[1]:{form}}" if ends else "one seed, no interval"


def span(loads: Sequence[float]) -> str:
    """Returns a range of loads in words."""
    return f"loads {min(loads):g} to {max(loads):g}" if loads else "at no load"
