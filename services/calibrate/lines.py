"""Files of JSON lines that users bring: every mistake named by file and line, all at once."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from router.documents import parse_json
from router.types import InvalidFileError, is_finite_number
from services.common.prompt_sizes import MOST_PROMPT_BYTES, body_bytes
from services.local.errors import InputError

MOST_LINES = 100_000
MOST_SHOWN = 20
_LONGEST_LINE_BYTES = body_bytes(MOST_PROMPT_BYTES)
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
Made = TypeVar("Made")


class LineError(ValueError):
    """A line is not as it must be; the message names its key."""


def read_lines(path: pathlib.Path, make: Callable[[dict[str, Any]], Made]) -> list[Made]:
    """Makes something of every line that is not empty.

    Args:
        path: The file.
        make: Gets the object of a line; raises LineError.

    Raises:
        InputError: The file cannot be read, is empty, or a line is wrong; one line per mistake.
    """
    made, problems = [], []
    try:
        for number, text in _numbered(path):
            try:
                found = parse_json(text, "", _LONGEST_LINE_BYTES)
                if not isinstance(found, dict):
                    raise LineError("must be a JSON object")
                made.append(make(found))
            except InvalidFileError as error:
                problems.append(f"{path}: line {number}: {'; '.join(error.problems)}")
            except LineError as error:
                problems.append(f"{path}: line {number}: {error}")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not valid UTF-8") from None
    if problems:
        more = len(problems) - MOST_SHOWN
        rest = [f"{path}: and {more} more mistakes"] if more > 0 else []
        raise InputError("\n".join([*problems[:MOST_SHOWN], *rest]))
    if not made:
        raise InputError(f"{path}: holds no line")
    return made


def _numbered(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as file:
        # What has no line ends, as a device, would be read as one line until the memory is full.
        lines = iter(partial(file.readline, _LONGEST_LINE_BYTES + 1), "")
        for number, text in enumerate(lines, start=1):
            if number > MOST_LINES:
                raise InputError(f"{path}: holds more than {MOST_LINES} lines")
            if len(text) > _LONGEST_LINE_BYTES:
                raise InputError(
                    f"{path}: line {number}: is longer than {_LONGEST_LINE_BYTES} characters"
                )
            if text.strip():
                yield number, text


def text_at(line: dict[str, Any], key: str, default: str | None = None) -> str:
    """Returns a text that is not empty, or the default; raises LineError."""
    if key not in line and default is not None:
        return default
    value = line.get(key)
    if not isinstance(value, str) or not value.strip():
        said = "is missing" if key not in line else f"must be a text that is not empty, got {value}"
        raise LineError(f"{key}: {said}"[:200])
    return value


def name_at(line: dict[str, Any], key: str) -> str:
    """Returns a name as the mesh has them; raises LineError."""
    value = text_at(line, key)
    if not _NAME.fullmatch(value):
        raise LineError(f"{key}: must be 1 to 64 characters of [a-z0-9_-], got {value!r}"[:200])
    return value


def number_at(
    line: dict[str, Any], key: str, low: float, high: float, default: float | None = None
) -> float:
    """Returns a number within bounds, or the default; raises LineError."""
    if key not in line and default is not None:
        return default
    value = line.get(key)
    if not is_finite_number(value) or not low <= value <= high:
        said = "is missing" if key not in line else f"must be {low:g} to {high:g}, got {value}"
        raise LineError(f"{key}: {said}"[:200])
    return float(value)
