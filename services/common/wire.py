"""Messages of protobuf put together by hand, where most of their bytes are known before.

Messages whose bytes follow each other are one message with the fields of all. A field that holds
text, bytes or a message is a tag, a length, and what it holds.
"""

from __future__ import annotations

_MORE, _SEVEN = 0x80, 0x7F
_MOST_KEPT = 2_048


def tag(number: int) -> bytes:
    """Returns the tag of a field that has a length, by its number (15 at most)."""
    return bytes((number << 3 | 2,))


def field(its_tag: bytes, data: bytes) -> bytes:
    """Returns a field that holds text, bytes or a message."""
    size = len(data)
    return its_tag + (_KEPT[size] if size < _MOST_KEPT else number_bytes(size)) + data


def number_bytes(value: int) -> bytes:
    """Returns a number, 0 or more, in sevens of bits, lowest first."""
    found = bytearray()
    while value > _SEVEN:
        found.append(value & _SEVEN | _MORE)
        value >>= 7
    found.append(value)
    return bytes(found)


_KEPT = tuple(number_bytes(size) for size in range(_MOST_KEPT))
