"""Writers of files shaped like the published traces. Their contents are made up."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

FIRST = datetime(2024, 5, 10, tzinfo=UTC)
LLM = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
FUNCTIONS_2019 = ["HashOwner", "HashApp", "HashFunction", "Trigger", *map(str, range(1, 1441))]
FUNCTIONS_2021 = ["app", "func", "end_timestamp", "duration"]
BURSTGPT = ["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"]

Rows = Iterable[Sequence[object]]


def write(path: Path, header: Sequence[str], rows: Rows, end: str = "\n") -> Path:
    """Writes a CSV file, gzip if its name ends so; returns the path."""
    if path.suffix == ".gz":
        with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator=end).writerows([header, *rows])
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator=end).writerows([header, *rows])
    return path


def llm_rows(requests: Iterable[tuple[float, int, int]], year: int = 2023) -> list[list[object]]:
    """Returns rows of (seconds, prompt, output) with the stamps of the 2023 or the 2024 files."""
    rows: list[list[object]] = []
    for time_s, prompt, output in requests:
        moment = FIRST + timedelta(microseconds=round(time_s * 1e6))
        # 2023: seven digits, no zone. 2024: no fraction on the full second, zone.
        long = moment.strftime("%Y-%m-%d %H:%M:%S.%f") + "0"
        rows.append([long if year == 2023 else str(moment), prompt, output])
    return rows


def burstgpt_rows(requests: Iterable[tuple[float, int, int]]) -> list[list[object]]:
    """Returns rows of (seconds, prompt, output)."""
    return [
        [time_s, "GPT-4", prompt, output, prompt + output, "API log"]
        for time_s, prompt, output in requests
    ]


def call_rows(calls: Iterable[tuple[float, float]]) -> list[list[object]]:
    """Returns rows of calls of (start, duration), seconds, listed by their end as published."""
    by_end = sorted((start_s + duration_s, duration_s) for start_s, duration_s in calls)
    return [["app", f"f{i}", repr(e), repr(d)] for i, (e, d) in enumerate(by_end)]


def count_rows(functions: Iterable[dict[int, int]]) -> list[list[object]]:
    """Returns rows of functions given as invocations by minute (1 to 1440)."""
    return [
        ["owner", "app", f"f{i}", "http", *(counts.get(m, 0) for m in range(1, 1441))]
        for i, counts in enumerate(functions)
    ]
