"""The table of latency profiles: how old they are, and how far off."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from services.cli.output import table
from services.common.profile_facts import source_and_age


def profile_table(profiles: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each tier that something is known of.

    Args:
        profiles: What JSON shows of them (`services.common.profile_facts.profile_json`).
    """
    rows: list[tuple[Any, ...]] = []
    for facts in profiles:
        told = (
            facts["profile"],
            source_and_age(facts["source"], facts["measured_s"], time.time()),
            facts["method"] or "-",
        )
        known = [each for each in facts["errors"] if not each["range"]]
        if not known:
            rows.append((*told, "-", "too few answers yet", ""))
        for whole in known:
            mine = [each for each in facts["errors"] if each["tier"] == whole["tier"]]
            worst = max(mine, key=lambda each: abs(math.log1p(each["error"])))
            where = worst["range"] or "all answers"
            row = whole["tier"], f"{whole['error']:+.2f} of {whole['count']}"
            rows.append((*told, *row, f"{worst['error']:+.2f} {where}"))
            told = "", "", ""
    columns = ("profile", "age", "measured by", "tier", "error", "farthest off")
    title = "latency profiles: predicted / observed - 1, by recent answers"
    return table(title, columns, rows, numeric_from=len(columns))
