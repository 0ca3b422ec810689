"""The comparison of endpoint pickers as a table of its own (`trainer/evaluation/pickers.py`).

python -m trainer.research.pickers --seeds 10
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from trainer.evaluation.pickers import PickerRow, picker_rows
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.statistics import Interval
from trainer.research.tuning import TuningError, add_profile_options, profile_of, run_command


def picker_table(rows: Sequence[PickerRow]) -> str:
    """Returns the rows as a Markdown table; gains are in percent of round robin's mean."""
    columns = (
        "fleet",
        "picker",
        "rate, req/s",
        "mean, ms",
        "p99, ms",
        "latency saved, %",
        "availability",
        "performance",
        "holds, req/s",
    )
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in rows:
        mean = _scaled(row.mean_s, 1e3)
        gain = _scaled(row.gain, 100.0)
        cells = (
            row.fleet,
            row.picker,
            f"{row.rate_rps:.0f}",
            f"{mean.mean:.1f} ± {mean.half:.1f}",
            f"{1e3 * row.p99_s:.0f}",
            f"{gain.mean:.1f} ± {gain.half:.1f}",
            str(row.availability),
            str(row.performance),
            f"{row.held_rps:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _scaled(value: Interval, factor: float) -> Interval:
    """Returns an interval in another unit."""
    return replace(value, mean=factor * value.mean, half=factor * value.half)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table for a profile."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer.research.pickers", description="Compares endpoint pickers."
    )
    add_profile_options(parser)
    parser.add_argument("--seeds", type=int, default=10, help="number of evaluation seeds")
    parser.add_argument("--duration-s", type=float, default=40.0, help="length of a run, seconds")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.seeds < 1 or not options.duration_s > 1.0:
            raise TuningError("--seeds must be at least 1, --duration-s above 1")
        rows = picker_rows(
            *profile_of(options),
            seeds=evaluation_seeds(options.seeds),
            duration_s=options.duration_s,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        print(picker_table(rows))

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
