"""JSON read field by field."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.errors import InvalidArgumentError
from services.common.openai.body import Fields, parse_json


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "no valid JSON"),
        (b"{", "no valid JSON at character 1"),
        (b"[1]", "is a list"),
        (b'"a"', "is a text"),
        (b"null", "is null"),
        (b'{"a": NaN}', "no valid JSON"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "no valid JSON"),
    ],
)
def test_what_is_no_object_of_json_is_refused(data: bytes, problem: str) -> None:
    """The body is named, and what is wrong with it."""
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        parse_json(data)
    assert caught.value.field == "body"


@pytest.mark.parametrize(
    ("method", "arguments", "value", "problem"),
    [
        ("text", (), 1, "is a number"),
        ("text", (), "\ud800", "half a surrogate pair at character 0"),
        ("flag", (), 1, "is a number"),
        ("whole", (1, 9), True, "is a boolean"),
        ("whole", (1, 9), 2.0, "is a number"),
        ("whole", (1, 9), 10, "is 10"),
        ("whole", (1, 9), 10**4_000, "of too many digits"),
        ("number", (), "1", "is a text"),
        ("number", (), True, "is a boolean"),
        ("number", (), 10**400, "is too large"),
        ("number", (), float("inf"), "is too large"),
        ("table", (), [], "is a list"),
    ],
)
def test_a_value_of_a_wrong_kind_names_its_field(
    method: str, arguments: tuple[int, ...], value: object, problem: str
) -> None:
    """True is no number, a number no text; limits are stated."""
    fields = Fields({"a": value}, "outer")
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        getattr(fields, method)("a", *arguments)
    assert caught.value.field == "outer.a"


@pytest.mark.parametrize("values", [{}, {"a": None}])
def test_null_is_as_good_as_nothing(values: dict[str, Any]) -> None:
    """Client libraries send either."""
    fields = Fields(values)
    found = (fields.text("a"), fields.whole("a", 1, 2), fields.number("a"), fields.table("a"))
    assert found == (None, None, None, None)
    assert not fields.flag("a")


def test_what_is_not_served_is_refused_by_name_unless_it_asks_for_nothing() -> None:
    """A field that would change the answer is never passed over."""
    neutral: dict[str, tuple[object, ...]] = {"n": (1,), "logprobs": (False,), "tools": ([],)}
    goods: list[dict[str, object]] = [
        {"n": 1}, {"n": 1.0}, {"logprobs": False}, {"tools": []}, {"n": None}, {"a": 1},
    ]  # fmt: skip
    for good in goods:
        Fields(good).only(frozenset({"a"}), neutral)
    for bad, code in (
        ({"n": 2}, "UNSUPPORTED_PARAMETER"),
        ({"n": True}, "UNSUPPORTED_PARAMETER"),
        ({"logprobs": 0}, "UNSUPPORTED_PARAMETER"),
        ({"tools": [{}]}, "UNSUPPORTED_PARAMETER"),
        ({"b": 1}, "UNKNOWN_PARAMETER"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            Fields(bad).only(frozenset({"a"}), neutral)
        assert (caught.value.field, caught.value.reason) == (next(iter(bad)), code)


def test_the_name_of_an_unknown_field_is_shown_short_and_printable() -> None:
    """It comes from outside and goes into an answer."""
    with pytest.raises(InvalidArgumentError) as caught:
        Fields({"\n" + "x" * 1_000: 1}).only(frozenset())
    assert caught.value.field.isprintable()
    assert len(caught.value.field) < 80
