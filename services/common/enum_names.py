"""Names of values that messages have, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def name_of(kind: Any, number: int) -> str:
    """Returns a value's name in small letters, without that of its enum.

    One that a later version has added is told by its number: parts of a mesh are renewed one by
    one.

    Args:
        kind: The enum, as generated; each has a type of its own.
        number: The value.
    """
    names: Mapping[int, Any] = kind.DESCRIPTOR.values_by_number
    if number not in names:
        return str(number)
    name: str = names[number].name
    return name.removeprefix(names[0].name.removesuffix("UNSPECIFIED")).lower()
