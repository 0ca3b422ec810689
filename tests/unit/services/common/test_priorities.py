"""Priority classes as texts, as numbers and in messages."""

from __future__ import annotations

import pytest

from router.types import Priority
from services.common import priorities
from tiercel.common.v1 import common_pb2


@pytest.mark.parametrize("priority", Priority)
def test_a_class_comes_back_from_its_message_and_its_name(priority: Priority) -> None:
    """Each has a value and a name."""
    value = priorities.MESSAGE[priority]
    assert priorities.of_message(value) is priority
    assert common_pb2.Priority.Name(value) == f"PRIORITY_{priority.name}"
    assert priorities.label_of(value) == priority.label
    assert priorities.of_text(priority.label) is priority


def test_what_says_nothing_is_normal() -> None:
    """In messages, and as one of Triton's numbers."""
    assert priorities.of_message(common_pb2.PRIORITY_UNSPECIFIED) is Priority.NORMAL
    assert priorities.of_number(0) is Priority.NORMAL


def test_tritons_numbers_fall_from_one() -> None:
    """The larger the lower, and none is lower than low."""
    found = [priorities.of_number(number) for number in (1, 2, 3, 4, 2**64)]
    assert found == [Priority.HIGH, Priority.NORMAL, *[Priority.LOW] * 3]


@pytest.mark.parametrize("text", ["", "High", "-1", "1.0", "\u0661", "9" * 21, "urgent", " low"])
def test_other_texts_are_none(text: str) -> None:
    """Whoever reads them says so."""
    assert priorities.of_text(text) is None


def test_an_unknown_value_is_itself() -> None:
    """So that the error can name it."""
    assert priorities.of_message(99) == 99
    assert priorities.label_of(99) == ""
