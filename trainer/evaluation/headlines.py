"""Headlines: each target beside what was found, worked out from the report's own rows.

A target that this run cannot judge (no learned policy, no bound, a part not run) has `met` None and
says why; it is never counted as met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.evaluation.plan import PAPER_WINDOW_RATIOS
from trainer.evaluation.rows import Row
from trainer.evaluation.targets import shifts, sweep, unpredictable
from trainer.evaluation.targets.view import Judge, View

REGRET_FAMILIES = ("bursty", "stale", "loss")


def headlines(
    report: Mapping[str, Any], learned: str, large: str, small: str, *, is_papers: bool = True
) -> list[Row]:
    """Returns one row per target: name, target, value, met (True, False, None), detail.

    Args:
        report: the results so far.
        learned: name of the learned policy; empty if there is none.
        large: name of static-large.
        small: name of always-small.
        is_papers: the setting is the one that the paper's claims are about; else they, and the
            targets that were set for it, are left out.
    """
    view = View(report, learned, large, small)
    judges: tuple[Judge, ...] = (sweep.availability, shifts.feasible_availability)
    if is_papers:
        judges = _PAPERS
    return [sweep.bound_kept(report), *(judge(view) for judge in judges)]


_PAPERS: tuple[Judge, ...] = (
    sweep.availability,
    sweep.load_ratio,
    sweep.share_everywhere,
    sweep.share_on_average,
    sweep.best_baseline,
    *(shifts.regret(family) for family in REGRET_FAMILIES),
    *(shifts.regret(family, where_small_copes=True) for family in REGRET_FAMILIES),
    *(unpredictable.window_loads(level) for level in unpredictable.WINDOW_LOAD_RATIOS),
    *(unpredictable.window_curve(level) for level in PAPER_WINDOW_RATIOS),
    unpredictable.gpus,
    shifts.shift_availability,
    shifts.feasible_availability,
    shifts.shift_performance,
    shifts.stale,
)
