"""The learned policy beside policies retrained for each shift (``trainer.research.retrained``)."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from router.documents import LARGEST_DOCUMENT_BYTES, parse_json
from trainer.evaluation import studies
from trainer.evaluation.report.study_tables import retrained_table, training_table
from trainer.evaluation.suite import RETRAINED_ASIDE

STALE = "stale"


def read_retrained(path: pathlib.Path | None, problems: list[str]) -> dict[str, Any] | None:
    """Returns the comparison of a file; appends what is wrong with it."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_DOCUMENT_BYTES + 1).decode("utf-8")
        found = parse_json(text, str(path))["retrained"]
        retrained_table(found["rows"])
        training_table(found["training"])
        known = [row for row in found["rows"] if row["safety_net"] and row["ratio"] is not None]
        are_pairs = all(row["ratio_ci95"] is None or len(row["ratio_ci95"]) == 2 for row in known)
        if not known or not found["training"] or not are_pairs:
            raise ValueError("nothing was compared")
        str(found["snapshot_version"]), dict(found["setting"]), int(found["rounds"])
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror or error}")
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
        problems.append(
            f"--retrained: {path} is not what `python -m trainer.research.retrained` writes"
        )
    else:
        return dict(found)
    return None


def retrained_study(
    found: Mapping[str, Any] | None, setting: Mapping[str, Any], version: str, notes: list[str]
) -> dict[str, Any]:
    """Returns the comparison as a study; stale, without rows, if it is of something else.

    Args:
        found: the comparison; None: none was given.
        setting: what the evaluation runs on, as `trainer.research.retrained` describes it.
        version: version of the learned policy that is evaluated; empty if there is none.
        notes: gets why the comparison cannot be used.
    """
    if found is None:
        return {**studies.not_run(RETRAINED_ASIDE), "training": []}
    reason = ""
    if found["snapshot_version"] != version:
        reason = (
            f"the policies were retrained from version {found['snapshot_version']}, evaluated is "
            f"{version or 'no learned policy'}"
        )
    else:
        other = [key for key, value in setting.items() if found["setting"].get(key) != value]
        if other:
            reason = (
                f"the policies were retrained for {other[0]} {found['setting'].get(other[0])}, "
                f"evaluated is {setting[other[0]]}"
            )
    if reason:
        notes.append(f"--retrained is stale and not used: {reason}")
        return {"status": STALE, "reason": reason, "rows": [], "training": []}
    return {**found, **studies.done(found["rows"])}
