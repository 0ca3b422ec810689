"""Tables of one policy's details and of the studies beside the protocol."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.evaluation.pickers import PUBLISHED_GAIN
from trainer.evaluation.report.tables import Row, Table, number, with_interval


def detail_table(rows: Sequence[Row], title: str) -> Table:
    """One policy's sweep: every number with its interval, latency, mix."""
    return Table(
        title,
        ("load", "requests/s", "availability", "performance", "bound", "share of the bound",
         "regret", "p50 ms", "p99 ms", "smooth goodput/s", "mix"),
        tuple(
            (
                f"{row['load']:g}x",
                number(row["rate_rps"], 0),
                with_interval(row, "availability", 4),
                with_interval(row, "performance", 4),
                number(row["bound"], 4),
                with_interval(row, "bound_share", 4),
                with_interval(row, "regret", 4),
                number(None if row["p50_s"] is None else 1e3 * row["p50_s"], 0),
                number(None if row["p99_s"] is None else 1e3 * row["p99_s"], 0),
                number(row["smooth_goodput_rps"], 0),
                "/".join(number(part, 2) for part in row["tier_mix"].values()),
            )
            for row in rows
        ),
        numeric_from=0,
    )  # fmt: skip


def picker_table(rows: Sequence[Row]) -> Table:
    """Endpoint pickers on each fleet, against round robin."""
    return Table(
        "Endpoint pickers, safety net off (published gain over round robin: "
        f"{100.0 * PUBLISHED_GAIN:.2f} %, by learning)",
        ("fleet", "picker", "requests/s", "mean ms", "p99 ms", "latency saved", "availability",
         "performance", "holds, requests/s"),
        tuple(
            (
                row["fleet"],
                row["picker"],
                number(row["rate_rps"], 0),
                number(1e3 * row["mean_s"], 1),
                number(1e3 * row["p99_s"], 0),
                with_interval(row, "latency_saved"),
                with_interval(row, "availability"),
                with_interval(row, "performance"),
                number(row["held_rps"], 0),
            )
            for row in rows
        ),
        numeric_from=2,
        open=True,
    )  # fmt: skip


def retrained_table(rows: Sequence[Row]) -> Table:
    """The learned policy beside one retrained for each shift, on the same requests."""
    return Table(
        "Shifts, beside a policy retrained for each, safety net on",
        ("shift", "of always-small", "load", "performance", "retrained", "ratio", "availability",
         "retrained"),
        tuple(
            (
                row["shift"],
                number(row["share_of_always_small"], 2),
                f"{row['load']:.1f}x",
                with_interval(row, "performance"),
                with_interval(row, "retrained_performance"),
                with_interval(row, "ratio"),
                number(row["availability"]),
                number(row["retrained_availability"]),
            )
            for row in rows
            if row["safety_net"]
        ),
    )  # fmt: skip


def training_table(rows: Sequence[Row]) -> Table:
    """What retraining did for each shift, by streams that evaluation does not use."""
    return Table(
        "Retraining for each shift: performance on its validation streams",
        ("shift", "rounds", "samples", "original", "trained on", "kept"),
        tuple(
            (
                row["shift"],
                str(row["rounds"]),
                str(row["samples"]),
                number(row["validation_original"], 4),
                number(row["validation_trained"], 4),
                row["kept"],
            )
            for row in rows
        ),
    )


def crosscheck_table(rows: Sequence[Row]) -> Table:
    """Learners of the same budget in the same environment."""
    return Table(
        "The same environment and budget, by this learner and by an RL library",
        ("learner", "steps", "training seeds", "load", "availability", "performance"),
        tuple(
            (
                row["learner"],
                str(row["steps"]),
                str(row["seed_count"]),
                number(row["load"], 2),
                with_interval(row, "availability"),
                with_interval(row, "performance"),
            )
            for row in rows
        ),
        open=True,
    )
