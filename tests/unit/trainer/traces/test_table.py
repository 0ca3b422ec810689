"""A file that is not as promised: one error that names file, line and column."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.trainer.traces import files
from trainer.traces import read, table
from trainer.traces.read import KINDS, read_trace
from trainer.traces.trace import TraceFileError

REQUESTS = [(0.0, 10, 1), (1.0, 20, 2), (2.0, 30, 3), (3.0, 40, 4)]


GOOD: dict[str, tuple[list[str], list[list[object]]]] = {
    "azure-llm": (files.LLM, files.llm_rows(REQUESTS)),
    "burstgpt": (files.BURSTGPT, files.burstgpt_rows(REQUESTS)),
    "azure-functions-2021": (files.FUNCTIONS_2021, files.call_rows([(1.0, 0.1), (2.0, 0.1)])),
    "azure-functions-2019": (files.FUNCTIONS_2019, files.count_rows([{1: 5}, {2: 5}])),
}


NUMBER = "must be a number from 0 to 1000000000"


WHOLE = "must be a whole number from 0 to 1000000000"


STAMP = "must be a date and time like"


CELLS = [
    # kind, column, what stands in line 3, message
    ("azure-llm", "TIMESTAMP", "yesterday", STAMP),
    ("azure-llm", "TIMESTAMP", "", STAMP),
    ("azure-llm", "TIMESTAMP", "2024-05-10", STAMP),
    ("azure-llm", "TIMESTAMP", "2024-05-10 25:00:00.0", STAMP),
    ("azure-llm", "TIMESTAMP", "0001-01-01T00:00:00+10:00", STAMP),
    ("azure-llm", "TIMESTAMP", "9999-12-31T23:59:59-10:00", STAMP),
    ("azure-llm", "TIMESTAMP", "2024-05-09 23:59:59.0", "is 1 s before the row above"),
    ("azure-llm", "ContextTokens", "many", WHOLE),
    ("azure-llm", "ContextTokens", "-3", WHOLE),
    ("azure-llm", "ContextTokens", "", WHOLE),
    ("azure-llm", "GeneratedTokens", "1.5", WHOLE),
    ("azure-llm", "GeneratedTokens", "nan", WHOLE),
    ("azure-llm", "GeneratedTokens", "1_0", WHOLE),
    ("azure-llm", "GeneratedTokens", "٣", WHOLE),
    ("azure-llm", "GeneratedTokens", "9" * 30, WHOLE),
    ("burstgpt", "Timestamp", "soon", NUMBER),
    ("burstgpt", "Timestamp", "nan", NUMBER),
    ("burstgpt", "Timestamp", "inf", NUMBER),
    ("burstgpt", "Timestamp", "1_0", NUMBER),
    ("burstgpt", "Timestamp", "-0.5", NUMBER),
    ("burstgpt", "Request tokens", "-1", WHOLE),
    ("burstgpt", "Response tokens", "x", WHOLE),
    ("azure-functions-2021", "end_timestamp", "late", NUMBER),
    ("azure-functions-2021", "end_timestamp", "-1", NUMBER),
    ("azure-functions-2021", "duration", "long", NUMBER),
    ("azure-functions-2021", "duration", "-0.1", NUMBER),
    ("azure-functions-2021", "duration", "inf", NUMBER),
    ("azure-functions-2019", "1", "-1", WHOLE),
    ("azure-functions-2019", "720", "1.0", WHOLE),
    ("azure-functions-2019", "1440", "", WHOLE),
    ("azure-functions-2019", "7", "9" * 12, WHOLE),
]


def written(path: Path, kind: str) -> Path:
    """Writes a good file of a kind."""
    return files.write(path, *GOOD[kind])


def fault_of(path: Path, kind: str | None = None) -> TraceFileError:
    """Returns the one error of reading a file."""
    with pytest.raises(TraceFileError) as caught:
        read_trace(path, kind)
    assert len(caught.value.problems) == 1
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_file_of_each_kind_is_read(tmp_path: Path, kind: str) -> None:
    """What the faults below are put into is right without them."""
    assert read_trace(written(tmp_path / "t.csv", kind)).kind == kind


@pytest.mark.parametrize(
    ("kind", "column", "cell", "message"), CELLS, ids=[f"{k}-{c}-{v[:12]}" for k, c, v, _ in CELLS]
)
def test_a_bad_cell_is_named(
    tmp_path: Path, kind: str, column: str, cell: str, message: str
) -> None:
    """File, line, column, the limit, and what stands there."""
    header, rows = GOOD[kind]
    broken = [list(row) for row in rows]
    broken[1][header.index(column)] = cell
    error = fault_of(files.write(tmp_path / "t.csv", header, broken))
    assert (error.line, error.column) == (3, column)
    assert str(error).startswith(f"t.csv: line 3, column {column}: {message}")


@pytest.mark.parametrize("kind", ["azure-llm", "burstgpt"])
def test_unsorted_times_are_refused(tmp_path: Path, kind: str) -> None:
    """The first row that goes back in time is named."""
    header, rows = GOOD[kind]
    path = files.write(tmp_path / "t.csv", header, [rows[0], rows[3], rows[2]])
    error = fault_of(path)
    assert (error.line, error.column) == (4, header[0])
    assert "is 1 s before the row above; rows must be in order of time" in str(error)


def test_unsorted_minutes_are_refused(tmp_path: Path) -> None:
    """Minutes whose columns are out of order are taken for a damaged file."""
    header, rows = GOOD["azure-functions-2019"]
    swapped = [*header[:6], header[7], header[6], *header[8:]]
    error = fault_of(files.write(tmp_path / "t.csv", swapped, rows))
    assert (error.line, error.column) == (1, "4")
    assert "stands before the minute it follows; minutes must be in order" in str(error)


MISSING = [(kind, column) for kind, (header, _) in GOOD.items() for column in header[:6]]


@pytest.mark.parametrize("named", [True, False], ids=["kind given", "kind found"])
@pytest.mark.parametrize(("kind", "column"), MISSING)
def test_a_missing_column_is_named(tmp_path: Path, kind: str, column: str, named: bool) -> None:
    """The column that is missing, and what the kind needs."""
    header, rows = GOOD[kind]
    at = header.index(column)
    shorter = [[*row[:at], *row[at + 1 :]] for row in rows]
    path = files.write(tmp_path / "t.csv", [*header[:at], *header[at + 1 :]], shorter)
    error = fault_of(path, kind if named else None)
    assert (error.line, error.column) == (1, column)
    assert f"missing; {kind} needs {header[0]}, {header[1]}, " in str(error)


def _text(text: str) -> Callable[[Path, str], None]:
    def make(path: Path, _kind: str) -> None:
        path.write_text(text)

    return make


def _header_only(path: Path, kind: str) -> None:
    files.write(path, GOOD[kind][0], [])


def _one_row(path: Path, kind: str) -> None:
    header, rows = GOOD[kind]
    files.write(path, header, [[0 if str(c) == "5" else c for c in rows[0]]])


def _short_row(path: Path, kind: str) -> None:
    header, rows = GOOD[kind]
    files.write(path, header, [rows[0], rows[1][:-1]])


def _long_row(path: Path, kind: str) -> None:
    header, rows = GOOD[kind]
    files.write(path, header, [rows[0], [*rows[1], 1]])


def _twice(path: Path, kind: str) -> None:
    header, rows = GOOD[kind]
    files.write(path, [*header, header[1]], [[*row, 1] for row in rows])


def _not_utf8(path: Path, kind: str) -> None:
    lines = written(path, kind).read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\xff\xfe" + lines[2], *lines[3:]]))


def _not_utf8_header(path: Path, kind: str) -> None:
    path.write_bytes(b"\xe9" + written(path, kind).read_bytes())


def _open_quote(path: Path, kind: str) -> None:
    with written(path, kind).open("a") as file:
        file.write('"open')


def _long_line(path: Path, kind: str) -> None:
    with written(path, kind).open("a") as file:
        file.write("x" * (table.LONGEST_LINE_BYTES + 1))


def _truncated_gzip(path: Path, kind: str) -> None:
    header, rows = GOOD[kind]
    packed = files.write(path.with_suffix(".gz"), header, [*rows, *[rows[-1]] * 20])
    path.write_bytes(packed.read_bytes()[:-12])


def _damaged_gzip(path: Path, kind: str) -> None:
    data = bytearray(gzip.compress(written(path, kind).read_bytes()))
    data[12:40] = b"\x00" * 28
    path.write_bytes(bytes(data))


def _wrong_checksum(path: Path, kind: str) -> None:
    data = bytearray(gzip.compress(written(path, kind).read_bytes()))
    data[-8] ^= 0xFF
    path.write_bytes(bytes(data))


def _directory(path: Path, _kind: str) -> None:
    path.mkdir()


def _nothing(_path: Path, _kind: str) -> None:
    pass


WHOLE_FILE = [
    ("empty", _text(""), 0, "t.csv: is empty; needs a header and rows"),
    ("only blank lines", _text("\n\n"), 1, "of no known kind; known: azure-functions-2019, "),
    ("another table", _text("a,b\n1,2\n"), 1, "t.csv: line 1: the header is of no known kind"),
    ("header only", _header_only, 0, "t.csv: has a header but no rows"),
    ("one request", _one_row, 0, "request(s); at least 2 at different times are needed"),
    ("short row", _short_row, 3, "fields, the header has"),
    ("long row", _long_row, 3, "fields, the header has"),
    ("column twice", _twice, 1, "stands twice in the header"),
    ("not UTF-8", _not_utf8, 3, "t.csv: line 3: byte 1 (0xff) is not UTF-8 text"),
    ("header not UTF-8", _not_utf8_header, 1, "t.csv: line 1: byte 1 (0xe9) is not UTF-8 text"),
    ("open quote", _open_quote, None, "not CSV: unexpected end of data"),
    ("endless line", _long_line, None, "is longer than 1000000 bytes; not a trace file"),
    ("truncated gzip", _truncated_gzip, None, "the gzip file ends in the middle: it was cut off"),
    ("damaged gzip", _damaged_gzip, 1, "the gzip file is damaged"),
    ("wrong checksum", _wrong_checksum, None, "the gzip file is damaged"),
    ("directory", _directory, 0, "t.csv: is a directory; name one trace file"),
    ("missing file", _nothing, 0, "t.csv: no such file"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("make", "line", "message"),
    [(make, line, message) for _, make, line, message in WHOLE_FILE],
    ids=[name for name, *_ in WHOLE_FILE],
)
def test_a_broken_file_is_one_clear_error(
    tmp_path: Path,
    kind: str,
    make: Callable[[Path, str], None],
    line: int | None,
    message: str,
) -> None:
    """Each fault of a whole file, for each kind; None stands for a line that differs by kind."""
    path = tmp_path / "t.csv"
    make(path, kind)
    error = fault_of(path)
    assert message in str(error)
    if line is None:
        assert error.line > 1
    else:
        assert error.line == line


def test_too_many_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is named before memory is full."""
    monkeypatch.setattr(read, "MOST_REQUESTS", 2)
    error = fault_of(written(tmp_path / "t.csv", "azure-llm"))
    assert str(error) == "t.csv: line 4: more than 2 requests; read a part of it by its duration"


def test_an_empty_part_is_named(tmp_path: Path) -> None:
    """A part without requests says which part."""
    path = written(tmp_path / "t.csv", "azure-llm")
    with pytest.raises(TraceFileError, match=r"has 0 request\(s\) from 50 to 60 s"):
        read_trace(path, start_s=50.0, duration_s=10.0)
