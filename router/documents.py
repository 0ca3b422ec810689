"""Texts of files that are tables: TOML and JSON, every way they can be wrong being one error."""

from __future__ import annotations

import json
import math
import re
import tomllib
from typing import Any, NoReturn

from router.types import InvalidFileError

LARGEST_DOCUMENT_BYTES = 4 * 1024 * 1024
"""Largest file that is read as a table; none that is meant so is a tenth as large."""
_LOWEST_INTEGER, _HIGHEST_INTEGER = -(2**63), 2**63 - 1
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_MARK = "\ufeff"
"""Byte order mark that some editors put before a text; it is skipped."""


def parse_toml(
    text: str, origin: str, largest_bytes: int = LARGEST_DOCUMENT_BYTES
) -> dict[str, Any]:
    """Returns the table of a TOML text; raises InvalidFileError if it is none."""
    _check_length(text, origin, largest_bytes)
    try:
        table = tomllib.loads(text.removeprefix(_MARK))
        _check_integers(table)
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(origin, [f"not TOML: {error}"]) from None
    return table


def parse_json(text: str, origin: str, largest_bytes: int = LARGEST_DOCUMENT_BYTES) -> Any:
    """Returns what a JSON text says; raises InvalidFileError if it is none, or holds no numbers.

    NaN, infinity and halves of characters, which Python would read, are refused.
    """
    _check_length(text, origin, largest_bytes)
    try:
        found = json.loads(
            text.removeprefix(_MARK),
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_not_a_number,
        )
        if _HALF.search(text):  # no text in Unicode, whatever JSON's grammar says: see if it is one
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        raise InvalidFileError(origin, [f"not JSON: {error}"]) from None


def _check_length(text: str, origin: str, largest_bytes: int) -> None:
    if len(text) > largest_bytes:
        raise InvalidFileError(origin, [f"is larger than {largest_bytes} bytes"])


def _check_integers(table: dict[str, Any]) -> None:
    """Raises ValueError for an integer that TOML does not promise: Python would take any."""
    waiting: list[Any] = [table]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, int) and not _LOWEST_INTEGER <= value <= _HIGHEST_INTEGER:
            raise ValueError("an integer does not fit 64 bits")


def _integer(text: str) -> int:
    value = int(text)
    return value if _LOWEST_INTEGER <= value <= _HIGHEST_INTEGER else _not_a_number(text)


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _not_a_number(text)


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no number")
