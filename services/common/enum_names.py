"""Names of values that messages have, as people read them."""

from __future__ import annotations

from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper


def name_of(kind: EnumTypeWrapper, number: int) -> str:
    """Returns a value's name in small letters, without that of its enum.

    One that a later version has added is told by its number: parts of a mesh are renewed one by
    one.
    """
    names = kind.DESCRIPTOR.values_by_number
    if number not in names:
        return str(number)
    name = names[number].name.removeprefix(names[0].name.removesuffix("UNSPECIFIED"))
    return str(name.lower())
