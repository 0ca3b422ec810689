"""Priority classes as people and as other interfaces write them, and as messages have them."""

from __future__ import annotations

from collections.abc import Mapping

from router.types import Priority
from tiercel.common.v1 import common_pb2

KNOWN = "high, normal, low, or Triton's number: 1 is high, 0 and 2 are normal, 3 and more low"
"""What a text or a number may be."""
MESSAGE: Mapping[Priority, common_pb2.Priority.ValueType] = {
    Priority.HIGH: common_pb2.PRIORITY_HIGH,
    Priority.NORMAL: common_pb2.PRIORITY_NORMAL,
    Priority.LOW: common_pb2.PRIORITY_LOW,
}
"""The value of each class in messages."""
_OF_MESSAGE: Mapping[int, Priority] = {
    common_pb2.PRIORITY_UNSPECIFIED: Priority.NORMAL,
    **{value: each for each, value in MESSAGE.items()},
}
_OF_NAME = {each.label: each for each in Priority}
_MOST_DIGITS = 20


def of_message(value: int) -> Priority | int:
    """Returns the class of a message's value; the value itself if there is no such class."""
    return _OF_MESSAGE.get(value, value)


def label_of(value: int) -> str:
    """Returns the name of a message's value; empty if there is no such class."""
    found = of_message(value)
    return found.label if isinstance(found, Priority) else ""


def of_number(number: int) -> Priority | None:
    """Returns the class of one of Triton's numbers, None of one below 0.

    0 stands for the default, 1 is the highest, and the larger the lower.
    """
    if number < 0:
        return None
    return (Priority.NORMAL, Priority.HIGH, Priority.NORMAL, Priority.LOW)[min(number, 3)]


def of_text(text: str) -> Priority | None:
    """Returns the class of a name, or of one of Triton's numbers; None if it is neither."""
    if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS:
        return of_number(int(text))
    return _OF_NAME.get(text)
