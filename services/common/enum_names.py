"""Names of values that messages have, as people read them."""

from __future__ import annotations

from typing import Any


def name_of(kind: Any, number: int) -> str:
    """Returns a value's name in small letters, without that of its enum.

    One that a later version has added is told by its number: parts of a mesh are renewed one by
    one.

    Args:
        kind: The enum, as the generated module has it (its stubs call it a class).
        number: The value.
    """
    names = kind.DESCRIPTOR.values_by_number
    if number not in names:
        return str(number)
    name = names[number].name.removeprefix(names[0].name.removesuffix("UNSPECIFIED"))
    return str(name.lower())
