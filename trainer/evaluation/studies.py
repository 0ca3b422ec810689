"""Studies that stand beside the protocol: so far the comparison of endpoint pickers."""

from __future__ import annotations

from dataclasses import dataclass

from router.catalog import QualityTable
from router.profile import LatencyProfile
from trainer.evaluation.jobs import Context
from trainer.evaluation.rows import Row, rounded
from trainer.evaluation.statistics import Interval
from trainer.research.pickers import picker_rows

RUN, NOT_RUN = "run", "not run"


@dataclass(frozen=True)
class PickerJob:
    """Compares endpoint pickers on the study's own fleets.

    Attributes:
        profile: costs.
        quality: quality table.
        seeds: evaluation seeds.
    """

    profile: LatencyProfile
    quality: QualityTable
    seeds: tuple[int, ...]

    @property
    def cost(self) -> float:
        """Simulated requests, about."""
        return 3e6 * len(self.seeds)

    def run(self, context: Context) -> list[Row]:
        """Returns a row per fleet and picker."""
        del context  # the study has fleets of its own
        return [
            {
                "fleet": row.fleet,
                "policy": row.policy,
                "picker": row.picker,
                "rate_rps": rounded(row.rate_rps),
                **_fields("mean_s", row.mean_s),
                "p99_s": rounded(row.p99_s),
                **_fields("latency_saved", row.gain),
                **_fields("availability", row.availability),
                **_fields("performance", row.performance),
                "held_rps": rounded(row.held_rps),
            }
            for row in picker_rows(self.profile, self.quality, seeds=self.seeds)
        ]


def _fields(name: str, value: Interval) -> Row:
    ends = [rounded(value.mean - value.half), rounded(value.mean + value.half)]
    return {name: rounded(value.mean), f"{name}_ci95": ends}


def not_run(reason: str) -> Row:
    """Returns the place of a study that was not done, and why."""
    return {"status": NOT_RUN, "reason": reason, "rows": []}


def done(rows: list[Row]) -> Row:
    """Returns a study's rows."""
    return {"status": RUN, "reason": "", "rows": rows}
