"""Stamps that lie years away from the others."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.unit.trainer.traces import files
from trainer.traces.__main__ import main, statistics
from trainer.traces.read import read_trace
from trainer.traces.trace import TraceFileError

LLM = ["2023-11-16 18:17:03.9799600,10,1", "2023-11-16 18:17:04.0799600,10,1"]


@pytest.mark.parametrize(
    ("header", "rows", "line"),
    [
        (files.LLM, ["1970-01-01 00:00:00.0000000,10,1", *LLM], 3),
        (files.LLM, [*LLM, "2093-11-16 18:17:04.0799600,10,1"], 4),
        (files.BURSTGPT, ["0,a,1,1,2,x", "999999999,a,1,1,2,x"], 3),
        (["app", "func", "end_timestamp", "duration"], ["a,f,5,1", "a,f,6,1", "a,f,9e8,1"], 4),
        (["app", "func", "end_timestamp", "duration"], ["a,f,9e8,9e8", "a,f,9e8,1"], 3),
    ],
)
def test_a_stamp_years_away_is_named_with_its_line(
    tmp_path: Path,
    header: Sequence[str],
    rows: list[str],
    line: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not the memory runs out: file, line and limit are told, once."""
    path = tmp_path / "t.csv"
    path.write_text("\n".join([",".join(header), *rows]) + "\n", encoding="utf-8")
    with pytest.raises(TraceFileError, match=rf"t\.csv: line {line}, .*at most 366") as caught:
        read_trace(path)
    assert caught.value.line == line
    assert main([str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_memory_goes_with_the_rows_not_with_the_time() -> None:
    """A year between two requests takes no array of its seconds."""
    tracemalloc.start()
    statistics(np.array([0.0, 1.0, 31_000_000.0]), 31_000_000.0)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 1_000_000


def test_the_statistics_are_those_of_all_windows() -> None:
    """Empty windows count though they are not written down."""
    rng = np.random.default_rng(1)
    arrival_N = np.sort(rng.random(700) * 400.0)
    count_S = np.bincount(arrival_N.astype(np.int64), minlength=400)[:400]
    _, _, empty_share, p99, most, dispersion, *_ = statistics(arrival_N, 400.0)
    assert empty_share == pytest.approx((count_S == 0).mean())
    assert p99 == pytest.approx(np.percentile(count_S, 99))
    assert most == count_S.max()
    assert dispersion == pytest.approx(count_S.var() / count_S.mean())
