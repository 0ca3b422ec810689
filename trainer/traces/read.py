"""Readers of public traces by their published columns.

| kind | published as | columns |
|---|---|---|
| azure-functions-2019 | Azure Functions 2019, a file per day | HashOwner, HashApp, HashFunction, \
Trigger, 1 ... 1440: invocations per minute |
| azure-functions-2021 | Azure Functions 2021 | app, func, end_timestamp, duration: seconds |
| azure-llm | Azure LLM inference 2023 and 2024 | TIMESTAMP, ContextTokens, GeneratedTokens |
| burstgpt | BurstGPT | Timestamp (seconds), Model, Request tokens, Response tokens, Total tokens, \
Log Type |

Columns are found by name; others may stand between them. Every mistake is a TraceFileError.

Shape letters: N requests, M minutes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.simulation.workload import WorkloadError
from trainer.traces.table import HIGHEST_NUMBER, Table
from trainer.traces.trace import Trace, TraceFileError

MOST_REQUESTS = 30_000_000
"""Most requests kept in memory, 0.7 GB: just above the largest published file (27.3 million)."""
MOST_FROM_COUNTS = 5_000_000
"""Most arrivals made from counts; more are thinned (a day of Azure Functions 2019 has hundreds of
millions)."""
LONGEST_SPAN_S = 366 * 86_400.0
"""Longest time from the first to the last request; more means that a stamp is wrong."""
MINUTE_S = 60.0
_EPOCH = datetime(2020, 1, 1)  # noqa: DTZ001 - UTC throughout, see _stamp
_SHORTEST_STAMP = len("2023-11-16 18:17:03")


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a trace that is wanted, seconds from the trace's start."""

    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Kind:
    """A published layout.

    Attributes:
        name: its name.
        columns: columns a file must have.
        time: returns a request's time in seconds from (table, row, places of the time columns).
        time_columns: columns `time` reads; empty: the file has counts per minute.
        token_columns: prompt and output tokens; empty: none.
        ordered: rows must be in order of time.
    """

    name: str
    columns: tuple[str, ...]
    time: Callable[[Table, list[str], list[int]], float] | None = None
    time_columns: tuple[str, ...] = ()
    token_columns: tuple[str, ...] = ()
    ordered: bool = True


def _stamp(table: Table, row: list[str], places: list[int]) -> float:
    """Returns a date and time as seconds; without a zone it is UTC. Digits beyond 1 us are cut."""
    text = row[places[0]]
    try:
        if len(text) < _SHORTEST_STAMP:
            raise ValueError
        moment = datetime.fromisoformat(text)
        zone = moment.utcoffset()
        # Subtracting moments that have a zone takes ten times as long.
        if zone is not None:
            moment = moment.replace(tzinfo=None) - zone
    except (ValueError, OverflowError):  # the latter within a day of the first or the last year
        table.fail(
            f"must be a date and time like 2023-11-16 18:17:03.9799600 (got {text[:40]!r})",
            "TIMESTAMP",
        )
    return (moment - _EPOCH).total_seconds()


def _seconds(table: Table, row: list[str], places: list[int]) -> float:
    """Returns a time given in seconds."""
    return table.number(row[places[0]], "Timestamp")


def _start(table: Table, row: list[str], places: list[int]) -> float:
    """Returns when a call began: its end less its duration."""
    end_s = table.number(row[places[0]], "end_timestamp")
    return end_s - table.number(row[places[1]], "duration")


_MINUTES = tuple(str(minute) for minute in range(1, 1441))

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "azure-functions-2019", ("HashOwner", "HashApp", "HashFunction", "Trigger", *_MINUTES)
        ),
        Kind(
            "azure-functions-2021",
            ("app", "func", "end_timestamp", "duration"),
            _start,
            ("end_timestamp", "duration"),
            # Calls are listed by their end, so that their starts are out of order anyway.
            ordered=False,
        ),
        Kind(
            "azure-llm",
            ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
            _stamp,
            ("TIMESTAMP",),
            ("ContextTokens", "GeneratedTokens"),
        ),
        Kind(
            "burstgpt",
            ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"),
            _seconds,
            ("Timestamp",),
            ("Request tokens", "Response tokens"),
        ),
    )
}
"""Known kinds by name."""


def detect_kind(table: Table) -> Kind:
    """Returns the kind whose columns the header has.

    Raises:
        TraceFileError: none fits; it names the column that is missing for the nearest kind.
    """
    header = set(table.header)
    present = {k.name: len(header & set(k.columns)) / len(k.columns) for k in KINDS.values()}
    nearest = max(present, key=lambda name: present[name])
    if present[nearest] < 0.5:
        known = ", ".join(KINDS)
        table.fail(f"the header is of no known kind; known: {known}")
    table.places(KINDS[nearest].columns, nearest)
    return KINDS[nearest]


def read_trace(
    path: str | Path,
    kind: str | None = None,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    rng: np.random.Generator | None = None,
) -> Trace:
    """Reads a trace file, plain or gzip.

    Times are counted from the first request (counts: from the first minute). Files with counts per
    minute get arrivals spread evenly at random inside each minute, thinned at random to about
    MOST_FROM_COUNTS.

    Args:
        path: the file.
        kind: name in KINDS; None: the one its header shows.
        start_s: leave out what is earlier, seconds; the trace's times then count from here.
        duration_s: leave out what is later than this after `start_s`, seconds; None = nothing.
        rng: source of randomness for counts; None: always the same.

    Raises:
        TraceFileError: the file is wrong; it names file, line, column and limit.
        WorkloadError: an argument is out of range.
    """
    if kind is not None and kind not in KINDS:
        raise WorkloadError(f"unknown trace kind {kind!r}; known: {', '.join(KINDS)}")
    if not start_s >= 0 or (duration_s is not None and not duration_s > 0):
        raise WorkloadError(
            f"start_s must be at least 0 and duration_s above 0 (got {start_s}, {duration_s})"
        )
    cut = Cut(start_s, math.inf if duration_s is None else start_s + duration_s)
    with Table(Path(path)) as table:
        known = detect_kind(table) if kind is None else KINDS[kind]
        table.places(known.columns, known.name)
        if known.time is None:
            minutes_M = _read_counts(table, known)
            return _from_counts(table, known, minutes_M, cut, rng or np.random.default_rng(0))
        return _read_requests(table, known, known.time, cut)


def _read_requests(
    table: Table,
    kind: Kind,
    time: Callable[[Table, list[str], list[int]], float],
    cut: Cut,
) -> Trace:
    """Reads a file with one request per row."""
    time_places = table.places(kind.time_columns, kind.name)
    token_places = table.places(kind.token_columns, kind.name)
    columns = list(zip(token_places, kind.token_columns, strict=True))
    times, tokens = array("d"), [array("q") for _ in columns]
    first_s = last_s = earliest_s = latest_s = math.nan
    for row in table.rows():
        time_s = time(table, row, time_places)
        earliest_s, latest_s = min(time_s, earliest_s), max(time_s, latest_s)
        if latest_s - earliest_s > LONGEST_SPAN_S:
            table.fail(
                f"is {(latest_s - earliest_s) / 86_400.0:.6g} days from a row above; a trace spans"
                f" at most {LONGEST_SPAN_S / 86_400.0:.0f}, so one of the two stamps is wrong",
                kind.time_columns[0],
            )
        if kind.ordered:
            if time_s < last_s:
                table.fail(
                    f"is {last_s - time_s:.6g} s before the row above; rows must be in order of"
                    " time (sort the file)",
                    kind.time_columns[0],
                )
            if math.isnan(first_s):
                first_s = time_s
            last_s = time_s
            if time_s - first_s > cut.end_s:
                break
            if time_s - first_s < cut.start_s:
                continue
        times.append(time_s)
        for store, (place, column) in zip(tokens, columns, strict=True):
            store.append(table.whole_number(row[place], column))
        if len(times) > MOST_REQUESTS:
            table.fail(f"more than {MOST_REQUESTS} requests; read a part of it by its duration")
    time_N = np.array(times)
    tokens_N = [np.array(store, dtype=np.int64) for store in tokens]
    if not kind.ordered:
        time_N = np.sort(time_N)
        first_s, last_s = (time_N[0], time_N[-1]) if len(time_N) else (0.0, 0.0)
        wanted_N = (time_N - first_s >= cut.start_s) & (time_N - first_s <= cut.end_s)
        time_N = time_N[wanted_N]
    arrival_N = time_N - first_s - cut.start_s
    span_s = min(cut.end_s, last_s - first_s) - cut.start_s
    _check_enough(table, arrival_N, cut)
    prompt_N, output_N = tokens_N or (None, None)
    return Trace(arrival_N, float(span_s), prompt_N, output_N, table.origin, kind.name)


def _check_enough(table: Table, arrival_N: NDArray[np.float64], cut: Cut) -> None:
    """Raises TraceFileError unless a rate can be computed."""
    if table.row_count == 0:
        raise TraceFileError(table.origin, "has a header but no rows")
    if len(arrival_N) < 2 or arrival_N[-1] == arrival_N[0]:
        part = "" if cut == Cut(0.0, math.inf) else f" from {cut.start_s:g} to {cut.end_s:g} s"
        raise TraceFileError(
            table.origin,
            f"has {len(arrival_N)} request(s){part}; at least 2 at different times are needed",
        )


def _read_counts(table: Table, kind: Kind) -> NDArray[np.int64]:
    """Returns invocations per minute, added up over functions."""
    places = table.places(_MINUTES, kind.name)
    for before, after, column in zip(places, places[1:], _MINUTES[1:], strict=False):
        if after < before:
            table.fail("stands before the minute it follows; minutes must be in order", column)
    first, last = places[0], places[-1] + 1
    side_by_side = last - first == len(_MINUTES)
    total_M = np.zeros(len(_MINUTES), dtype=np.int64)
    for row in table.rows():
        cells = row[first:last] if side_by_side else [row[place] for place in places]
        # One test and one conversion for all 1440 cells: cell by cell a day takes minutes.
        digits = "".join(cells)
        count_M = total_M
        if plain := digits.isascii() and digits.isdecimal() and all(cells):
            count_M = np.fromstring(",".join(cells), dtype=np.int64, sep=",")
        if not plain or count_M.max() > HIGHEST_NUMBER:
            for cell, column in zip(cells, _MINUTES, strict=True):
                table.whole_number(cell, column)
        total_M += count_M
    return total_M


def _from_counts(
    table: Table, kind: Kind, total_M: NDArray[np.int64], cut: Cut, rng: np.random.Generator
) -> Trace:
    """Returns arrivals spread evenly at random inside each minute (Poisson, given the counts)."""
    start_M = np.arange(len(total_M)) * MINUTE_S
    end_s = min(cut.end_s, len(total_M) * MINUTE_S)
    total_M = np.where((start_M + MINUTE_S > cut.start_s) & (start_M < end_s), total_M, 0)
    total = int(total_M.sum())
    share = min(1.0, MOST_FROM_COUNTS / total) if total else 1.0
    kept_M = rng.binomial(total_M, share) if share < 1.0 else total_M
    time_N = np.repeat(start_M, kept_M) + MINUTE_S * rng.random(int(kept_M.sum()))
    time_N = np.sort(time_N[(time_N >= cut.start_s) & (time_N < end_s)])
    _check_enough(table, time_N, cut)
    arrival_N = time_N - cut.start_s
    span_s = end_s - cut.start_s
    return Trace(arrival_N, span_s, None, None, table.origin, kind.name, share)
