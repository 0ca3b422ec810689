"""CSV files, plain or gzip, whose every mistake is one error with line and column.

Lines are decoded one by one, so that a byte that is not UTF-8, a cut gzip stream or a stray NUL is
reported where it is, and files larger than memory can be read.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from trainer.traces.trace import TraceFileError

LONGEST_LINE_BYTES = 1_000_000
"""No published trace has a line a tenth as long; what has is no CSV file."""
HIGHEST_NUMBER = 1e9
"""Highest count, token number or time in seconds that is believed."""
_GZIP_MAGIC = b"\x1f\x8b"
_QUOTED = 40
_MOST_DIGITS = 40


class Table:
    """An open CSV file with a header. Use it as a context manager.

    Attributes:
        origin: the file's name, for messages.
        header: names of the columns.
        line: line last read, counted from 1.
        row_count: rows read so far.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file and reads its header.

        Raises:
            TraceFileError: there is no such file, it cannot be read, or it has no usable header.
        """
        self.origin = path.name or str(path)
        self.line = 0
        self.row_count = 0
        self._file = self._open(path)
        self._rows = csv.reader(self._lines(), strict=True)
        try:
            self.header = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file."""
        self._file.close()

    def rows(self) -> Iterator[list[str]]:
        """Yields the rows after the header, empty lines left out.

        Raises:
            TraceFileError: the file cannot be read on, or a row has not as many fields as the
                header.
        """
        width = len(self.header)
        while (row := self._next_row()) is not None:
            if len(row) == width:
                self.row_count += 1
                yield row
            elif row:
                column = self.header[len(row)] if len(row) < width else ""
                self.fail(f"has {len(row)} fields, the header has {width}", column)

    def places(self, columns: tuple[str, ...], kind: str) -> list[int]:
        """Returns the index of each column; raises TraceFileError at the first that is missing."""
        for column in columns:
            if column not in self.header:
                self.line = 1
                self.fail(f"missing; {kind} needs {_listed(columns)}", column)
        return [self.header.index(column) for column in columns]

    def fail(self, problem: str, column: str = "") -> NoReturn:
        """Raises a TraceFileError for the line last read."""
        raise TraceFileError(self.origin, problem, self.line, column)

    def whole_number(self, text: str, column: str) -> int:
        """Returns a whole number from 0 to HIGHEST_NUMBER."""
        is_number = text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS
        value = int(text) if is_number else -1
        if not 0 <= value <= HIGHEST_NUMBER:
            self._fail_number("a whole number", text, column)
        return value

    def number(self, text: str, column: str) -> float:
        """Returns a number from 0 to HIGHEST_NUMBER."""
        try:
            # float() reads 1_000, which no trace means.
            value = math.nan if "_" in text else float(text)
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= HIGHEST_NUMBER:
            self._fail_number("a number", text, column)
        return value

    def _fail_number(self, what: str, text: str, column: str) -> NoReturn:
        shown = text if len(text) <= _QUOTED else text[:_QUOTED] + "..."
        self.fail(f"must be {what} from 0 to {HIGHEST_NUMBER:.0f} (got {shown!r})", column)

    def _open(self, path: Path) -> BufferedIOBase:
        try:
            if path.is_dir():
                raise TraceFileError(self.origin, "is a directory; name one trace file")
            # Opened once: a pipe gives its first bytes to whoever reads them first.
            file = path.open("rb")
            if file.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] != _GZIP_MAGIC:
                return file
            unpacked: Any = gzip.GzipFile(fileobj=file)
            unpacked.myfileobj = file  # closed with it
            return cast("gzip.GzipFile", unpacked)
        except FileNotFoundError:
            raise TraceFileError(str(path), "no such file") from None
        except (OSError, ValueError) as error:
            raise TraceFileError(self.origin, f"cannot be read: {error}") from None

    def _lines(self) -> Iterator[str]:
        """Yields decoded lines; `line` is the number of the one last yielded."""
        while True:
            self.line += 1
            try:
                raw = self._file.readline(LONGEST_LINE_BYTES + 1)
            except EOFError:
                self.fail("the gzip file ends in the middle: it was cut off")
            except (gzip.BadGzipFile, zlib.error) as error:
                self.fail(f"the gzip file is damaged: {error}")
            except OSError as error:
                self.fail(f"cannot be read on: {error}")
            if not raw:
                self.line -= 1
                return
            if len(raw) > LONGEST_LINE_BYTES:
                self.fail(f"is longer than {LONGEST_LINE_BYTES} bytes; not a trace file")
            try:
                # Spreadsheets put a byte order mark before the header.
                yield raw.decode("utf-8-sig" if self.line == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                self.fail(f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8 text")

    def _next_row(self) -> list[str] | None:
        try:
            return next(self._rows, None)
        except csv.Error as error:
            self.fail(f"not CSV: {error}")

    def _read_header(self) -> list[str]:
        row = self._next_row()
        if row is None:
            raise TraceFileError(self.origin, "is empty; needs a header and rows")
        header = [name.strip() for name in row]
        for index, name in enumerate(header):
            if name and name in header[:index]:
                self.fail("stands twice in the header", name)
        return header


def _listed(columns: tuple[str, ...]) -> str:
    """Returns the names, a long numbered row of them shortened."""
    if len(columns) <= 8:
        return ", ".join(columns)
    return ", ".join([*columns[:5], "...", columns[-1]])
