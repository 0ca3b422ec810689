"""Readers: every kind comes back as it was written, found by its header, plain or gzip."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.trainer.traces import files
from trainer.simulation.workload import WorkloadError
from trainer.traces import read
from trainer.traces.read import read_trace

MICROSECONDS = st.integers(0, 10**10)
TOKENS = st.integers(0, 100_000)
REQUESTS = st.lists(st.tuples(MICROSECONDS, TOKENS, TOKENS), min_size=2, max_size=30).filter(
    lambda requests: len({r[0] for r in requests}) > 1
)
SOME = [(0.0, 10, 1), (0.5, 20, 2), (90.0, 30, 0), (100.0, 40, 4)]
# tmp_path is one folder for all examples; each overwrites the file of the one before.
reusing_folder = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def in_order(requests: list[tuple[int, int, int]]) -> list[tuple[float, int, int]]:
    """Returns requests by time, in seconds from the first."""
    first = min(requests)[0]
    return [((time - first) / 1e6, prompt, output) for time, prompt, output in sorted(requests)]


@reusing_folder
@given(requests=REQUESTS, year=st.sampled_from([2023, 2024]))
def test_azure_llm_comes_back(
    tmp_path: Path, requests: list[tuple[int, int, int]], year: int
) -> None:
    """Times to the microsecond and both lengths survive, with the stamps of either year."""
    wanted = in_order(requests)
    path = files.write(tmp_path / "t.csv", files.LLM, files.llm_rows(wanted, year), end="\r\n")
    trace = read_trace(path)
    assert trace.kind == "azure-llm"
    assert trace.arrival_N == pytest.approx([r[0] for r in wanted], abs=1e-6)
    assert trace.duration_s == pytest.approx(wanted[-1][0], abs=1e-6)
    assert trace.prompt_tokens_N is not None
    assert trace.output_tokens_N is not None
    assert trace.prompt_tokens_N.tolist() == [r[1] for r in wanted]
    assert trace.output_tokens_N.tolist() == [r[2] for r in wanted]


@reusing_folder
@given(requests=REQUESTS)
def test_burstgpt_comes_back(tmp_path: Path, requests: list[tuple[int, int, int]]) -> None:
    """Times and lengths survive; a failed request keeps its output of 0 tokens."""
    wanted = in_order(requests)
    later = [(time_s + 5.0, prompt, output) for time_s, prompt, output in wanted]
    path = files.write(tmp_path / "t.csv", files.BURSTGPT, files.burstgpt_rows(later))
    trace = read_trace(path)
    assert trace.kind == "burstgpt"
    assert trace.arrival_N == pytest.approx([r[0] for r in wanted], abs=1e-6)
    assert trace.output_tokens_N is not None
    assert trace.output_tokens_N.tolist() == [r[2] for r in wanted]


@reusing_folder
@given(requests=REQUESTS)
def test_functions_2021_come_back(tmp_path: Path, requests: list[tuple[int, int, int]]) -> None:
    """A call arrives at its end less its duration, whatever the order of the ends."""
    calls = [(time_s, duration_ms / 1e3) for time_s, duration_ms, _ in in_order(requests)]
    path = files.write(tmp_path / "t.csv", files.FUNCTIONS_2021, files.call_rows(calls))
    trace = read_trace(path)
    assert trace.kind == "azure-functions-2021"
    assert trace.arrival_N == pytest.approx([start_s for start_s, _ in calls], abs=1e-6)
    assert trace.prompt_tokens_N is None


@settings(reusing_folder, max_examples=8)
@given(
    functions=st.lists(
        st.dictionaries(st.integers(1, 1440), st.integers(1, 50), min_size=1, max_size=5),
        min_size=1,
        max_size=3,
    ).filter(lambda functions: sum(sum(f.values()) for f in functions) > 1)
)
def test_functions_2019_keep_their_counts(tmp_path: Path, functions: list[dict[int, int]]) -> None:
    """Each minute has the functions' invocations added up, and the trace lasts a day."""
    path = files.write(tmp_path / "t.csv", files.FUNCTIONS_2019, files.count_rows(functions))
    trace = read_trace(path)
    assert trace.kind == "azure-functions-2019"
    assert trace.duration_s == 86_400.0
    counts = np.bincount((trace.arrival_N // 60.0).astype(int), minlength=1440)
    for minute in range(1, 1441):
        assert counts[minute - 1] == sum(f.get(minute, 0) for f in functions)


def test_counts_become_the_same_arrivals_by_seed(tmp_path: Path) -> None:
    """Two reads agree, another generator gives other moments of the same minutes."""
    path = files.write(tmp_path / "t", files.FUNCTIONS_2019, files.count_rows([{3: 40, 9: 7}]))
    first, second = read_trace(path), read_trace(path)
    other = read_trace(path, rng=np.random.default_rng(5))
    assert (first.arrival_N == second.arrival_N).all()
    assert (first.arrival_N != other.arrival_N).any()


def test_too_many_counts_are_thinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts beyond the limit are thinned alike in every minute, and the share says so."""
    monkeypatch.setattr(read, "MOST_FROM_COUNTS", 4000)
    path = files.write(tmp_path / "t", files.FUNCTIONS_2019, files.count_rows([{1: 9000, 5: 3000}]))
    trace = read_trace(path)
    assert trace.share == pytest.approx(1 / 3)
    assert len(trace) == pytest.approx(4000, rel=0.1)
    assert (trace.arrival_N < 60.0).mean() == pytest.approx(0.75, abs=0.05)


def test_gzip_is_known_by_its_bytes(tmp_path: Path) -> None:
    """A compressed file is read like a plain one, whatever its name."""
    packed = files.write(tmp_path / "t.csv.gz", files.LLM, files.llm_rows(SOME))
    packed = packed.rename(tmp_path / "t.csv")
    assert read_trace(packed).arrival_N == pytest.approx([0.0, 0.5, 90.0, 100.0])


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """Order of columns, further ones, a byte order mark and blank lines make no difference."""
    header = ["﻿Session ID", *reversed(files.BURSTGPT), "Elapsed time"]
    rows = [["s", *reversed(row), 1.5] for row in files.burstgpt_rows(SOME)]
    spaced: list[list[object]] = [*rows[:2], [], *rows[2:], []]
    trace = read_trace(files.write(tmp_path / "t", header, spaced))
    assert trace.prompt_tokens_N is not None
    assert trace.prompt_tokens_N.tolist() == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (files.LLM, files.llm_rows(SOME)),
        (files.BURSTGPT, files.burstgpt_rows(SOME)),
        (files.FUNCTIONS_2021, files.call_rows([(t, 0.25) for t, _, _ in SOME])),
    ],
    ids=["azure-llm", "burstgpt", "azure-functions-2021"],
)
def test_a_part_counts_from_its_start(
    tmp_path: Path, header: list[str], rows: list[list[object]]
) -> None:
    """A part keeps the requests inside it and counts time from where it begins."""
    trace = read_trace(files.write(tmp_path / "t", header, rows), start_s=0.4, duration_s=95.0)
    assert trace.arrival_N == pytest.approx([0.1, 89.6], abs=1e-6)
    assert trace.duration_s == pytest.approx(95.0)


def test_a_part_of_counts_keeps_its_minutes(tmp_path: Path) -> None:
    """A part of a day of counts has the invocations of its minutes only."""
    rows = files.count_rows([{1: 100, 2: 200, 3: 400}])
    path = files.write(tmp_path / "t", files.FUNCTIONS_2019, rows)
    trace = read_trace(path, start_s=60.0, duration_s=60.0)
    assert len(trace) == 200
    assert trace.duration_s == 60.0


def test_reading_a_part_stops_at_its_end(tmp_path: Path) -> None:
    """What comes after the part is not read: a week's file costs what its first hour does."""
    rows: list[list[object]] = [*files.llm_rows(SOME), ["broken", "broken", "broken"]]
    path = files.write(tmp_path / "t", files.LLM, rows)
    assert len(read_trace(path, duration_s=95.0)) == 3


def test_a_kind_can_be_named(tmp_path: Path) -> None:
    """The kind given is the one read."""
    path = files.write(tmp_path / "t", files.LLM, files.llm_rows(SOME))
    assert read_trace(path, "azure-llm").kind == "azure-llm"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "azure"}, "unknown trace kind 'azure'; known: azure-functions-2019, "),
        ({"start_s": -1.0}, "start_s must be at least 0"),
        ({"duration_s": 0.0}, "duration_s above 0"),
        ({"start_s": float("nan")}, "start_s must be at least 0"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, options: dict[str, object], message: str) -> None:
    """An argument out of range is an error of its own, not one of the file."""
    path = files.write(tmp_path / "t", files.LLM, files.llm_rows(SOME))
    with pytest.raises(WorkloadError, match=message):
        read_trace(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_a_trace_may_come_out_of_a_pipe(tmp_path: Path, suffix: str) -> None:
    """Its first bytes are there once."""
    path = files.write(tmp_path / f"t.{suffix}", files.LLM, files.llm_rows(SOME))
    expected = read_trace(path)
    content = path.read_bytes()
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(content)
    try:
        found = read_trace(Path(f"/dev/fd/{reader}"))
    finally:
        os.close(reader)
    assert len(found) == len(expected)
