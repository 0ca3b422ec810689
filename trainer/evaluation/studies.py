"""The place of a study beside the protocol: its rows, or why it was not run."""

from __future__ import annotations

from trainer.evaluation.rows import Row

RUN, NOT_RUN = "run", "not run"


def not_run(reason: str) -> Row:
    """Returns the place of a study that was not done, and why."""
    return {"status": NOT_RUN, "reason": reason, "rows": []}


def done(rows: list[Row]) -> Row:
    """Returns a study's rows."""
    return {"status": RUN, "reason": "", "rows": rows}
