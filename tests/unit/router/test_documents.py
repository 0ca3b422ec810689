"""Texts of tables: what is refused, and that it is one short error."""

from __future__ import annotations

import pytest

from router.documents import LARGEST_DOCUMENT_BYTES, parse_json, parse_toml
from router.types import InvalidFileError


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a = 1\na = 2",
        "a = " + "[" * 100_000,
        "a = " + "9" * 5_000,
        "a = 0x" + "f" * 5_000,
        "a = [{b = 9223372036854775808}]",
        "#" * (LARGEST_DOCUMENT_BYTES + 1),
    ],
)
def test_what_is_no_toml_is_one_error(text: str) -> None:
    """Syntax, endless nesting, numbers without end and size are told in one line."""
    with pytest.raises(InvalidFileError) as caught:
        parse_toml(text, "p.toml")
    assert len(caught.value.problems) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1,]",
        "[" * 100_000,
        "9" * 5_000,
        "9223372036854775808",
        "NaN",
        "[-Infinity]",
        "1e999",
        r'["\ud800"]',
        r'{"\uDFFF": 1}',
        " " * (LARGEST_DOCUMENT_BYTES + 1),
    ],
)
def test_what_is_no_json_is_one_error(text: str) -> None:
    """The same, and numbers that JSON does not have."""
    with pytest.raises(InvalidFileError) as caught:
        parse_json(text, "p.json")
    assert len(str(caught.value)) < 500


def test_both_halves_of_a_character_are_one() -> None:
    """JSON writes what is beyond 16 bits so; and what only looks like a half is none."""
    assert parse_json(r'["\ud83d\ude00", "\\ud800"]', "p.json") == ["\U0001f600", r"\ud800"]


def test_a_byte_order_mark_is_skipped() -> None:
    """Both kinds of text may begin with one."""
    assert parse_toml("\ufeffa = 1", "p.toml") == {"a": 1}
    assert parse_json('\ufeff{"a": 1}', "p.json") == {"a": 1}
