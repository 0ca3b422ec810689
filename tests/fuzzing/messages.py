"""Wrong messages of any type, made from its descriptor: no message is listed here by name.

A message is changed field by field (extremes, lists that explode, enums that do not exist), then
perhaps as bytes (cut, garbled, unknown fields, text that is not UTF-8).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from tests.fuzzing.octets import changed_bytes

WHOLE_NUMBERS = (
    0, 1, -1, 2, 3, 127, 128, 255, 1_000, 65_536, 86_400, 999_999_999, 10**9, -(10**9),
    2**31 - 1, -(2**31), 2**32, 2**53 + 1, 253_402_300_800, 315_576_000_001, 2**62, 2**63 - 1,
    -(2**63),
)  # fmt: skip
NUMBERS = (
    0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 1e-9, 5e-324, 65_504.0, 7e4, 1e9, 1e15, 3.5e38, 1e300,
    1.797e308, -1.797e308, float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "\0", "a]b", "job[7]", "timeout expired", "../../etc/passwd", "{0}{id}%s%n",
    "a\nb\r\n", "\u202e\u0000\u200b", "\U0001f4a5" * 40, "é" * 64, "x" * 63, "x" * 64, "x" * 65,
    "x" * 128, "x" * 129, "NaN", "-1", "1e999", "null", "a@b", "a@b@c", ":", "[::1]:1", "*",
    "127.0.0.1:0", "127.0.0.1:99999", "unix:/tmp/x", "dns:///a", "\ufeff", "\uff21",
)  # fmt: skip
_LENGTHS = (255, 1_024, 1_025, 4_096, 4_097, 65_536, 65_537)
_COUNTS = (2, 3, 21, 129, 1_001)
_RARE_LENGTH, _RARE_COUNT = 3_000_000, 100_000
_MOST_LIST_BYTES = 1_000_000
_RARE = 0.002
_WIDEST = 8
_DEEPEST = 6
_SCALARS: dict[int, tuple[Any, ...]] = {
    FieldDescriptor.CPPTYPE_INT32: tuple(n for n in WHOLE_NUMBERS if -(2**31) <= n < 2**31),
    FieldDescriptor.CPPTYPE_INT64: WHOLE_NUMBERS,
    FieldDescriptor.CPPTYPE_UINT32: tuple(n for n in WHOLE_NUMBERS if 0 <= n < 2**32),
    FieldDescriptor.CPPTYPE_UINT64: tuple(n for n in WHOLE_NUMBERS if n >= 0),
    FieldDescriptor.CPPTYPE_DOUBLE: NUMBERS,
    FieldDescriptor.CPPTYPE_FLOAT: NUMBERS,
    FieldDescriptor.CPPTYPE_BOOL: (False, True),
}
_UNKNOWN_FIELDS = (
    b"\xf8\xff\xff\xff\x0f\x01",  # field 2^29 - 1, a number
    b"\xfa\x3e\x03abc",  # field 1007, bytes
    b"\xfa\x3e" + b"\xff" * 9 + b"\x01",  # bytes of an impossible length
    b"\xfb\x3e" * 200,  # groups in groups that never end
    b"\x0a\x7f",  # field 1 cut short
    b"\x00\x01",  # field 0, which there is none
    b"\x07",  # a wire type that does not exist
)


class MessageMaker:
    """Makes messages.

    Args:
        rng: Source of every choice.
        words: Names that mean something to who reads the messages.
        blobs: Bytes that do.
    """

    def __init__(
        self, rng: random.Random, words: Sequence[str] = (), blobs: Sequence[bytes] = ()
    ) -> None:
        self._rng = rng
        self.words = list(words) or ["a"]
        self.blobs = list(blobs) or [b""]

    def wrong(self, seed: Message) -> bytes:
        """Returns the bytes of a message like `seed`, changed in one place or a few."""
        message = type(seed)()
        if self._rng.random() < 0.1:
            self._fill(message, 0)
        else:
            message.CopyFrom(seed)
        for _ in range(self._rng.choice((0, 1, 1, 1, 2, 3, 6))):
            self._change(message)
        payload = message.SerializeToString()
        if self._rng.random() < 0.15:
            payload = self._wrong_bytes(payload)
        return payload

    def _wrong_bytes(self, payload: bytes) -> bytes:
        rng = self._rng
        how = rng.randrange(4)
        if how == 0:
            return payload + rng.choice(_UNKNOWN_FIELDS)
        if how == 1:
            return payload + payload  # fields again: the last one counts, messages are merged
        if how == 2:
            # Text that is not UTF-8: somewhere in the bytes is a letter.
            places = [i for i, byte in enumerate(payload[:4_096]) if 97 <= byte <= 122]
            if places:
                place = rng.choice(places)
                return payload[:place] + b"\xff" + payload[place + 1 :]
        return changed_bytes(payload, rng)

    def _change(self, message: Message) -> None:
        """Changes one field somewhere in the tree."""
        sites: list[tuple[Message, FieldDescriptor]] = []
        waiting = [message]
        while waiting:
            owner = waiting.pop()
            for field in owner.DESCRIPTOR.fields:
                sites.append((owner, field))
                if field.message_type is not None and not _is_map(field):
                    if field.is_repeated:
                        waiting.extend(getattr(owner, field.name)[:_WIDEST])
                    elif owner.HasField(field.name):
                        waiting.append(getattr(owner, field.name))
        if sites:
            self._change_field(*self._rng.choice(sites))

    def _change_field(self, owner: Message, field: FieldDescriptor) -> None:
        rng = self._rng
        if rng.random() < 0.15:
            owner.ClearField(field.name)
        elif _is_map(field):
            self._grow_map(owner, field, self._rng.choice(_COUNTS), _DEEPEST - 1)
        elif field.is_repeated:
            self._change_list(owner, field)
        elif field.message_type is not None:
            inner = getattr(owner, field.name)
            inner.SetInParent()
            self._fill(inner, _DEEPEST - 2)
        else:
            setattr(owner, field.name, self._scalar(field))

    def _change_list(self, owner: Message, field: FieldDescriptor) -> None:
        rng = self._rng
        items = getattr(owner, field.name)
        how = rng.randrange(4)
        if how == 0 and len(items) > 1:
            del items[rng.randrange(len(items))]
        elif how == 1 and len(items) > 1:
            kept = list(items)
            rng.shuffle(kept)
            del items[:]
            items.extend(kept)
        else:
            count = _RARE_COUNT if rng.random() < _RARE else rng.choice(_COUNTS)
            if field.message_type is None:
                item = self._scalar(field)
                # Texts and bytes may be long themselves.
                size = len(item) if isinstance(item, str | bytes) else 1
                items.extend([item] * min(count, 1 + _MOST_LIST_BYTES // (size + 1)))
            else:
                if not len(items) or rng.random() < 0.5:
                    self._fill(items.add(), _DEEPEST - 2)
                chosen = items[rng.randrange(len(items))]
                if chosen.ByteSize() * count < _MOST_LIST_BYTES:
                    items.extend([chosen] * count)

    def _grow_map(self, owner: Message, field: FieldDescriptor, count: int, depth: int) -> None:
        """Adds entries; messages in them, which may hold their own kind, end at a depth."""
        entries = getattr(owner, field.name)
        key, value = field.message_type.fields
        for _ in range(count):
            if value.message_type is None:
                entries[self._scalar(key)] = self._scalar(value)
            else:
                self._fill(entries[self._scalar(key)], depth)

    def _fill(self, message: Message, depth: int) -> None:
        """Sets some of a message's fields to anything."""
        rng = self._rng
        for field in message.DESCRIPTOR.fields:
            if rng.random() < 0.4:
                continue
            if _is_map(field):
                if depth < _DEEPEST:
                    self._grow_map(message, field, rng.randrange(4), depth + 1)
            elif field.message_type is None and not field.is_repeated:
                setattr(message, field.name, self._scalar(field))
            elif field.message_type is None:
                getattr(message, field.name).extend([self._scalar(field)] * rng.randrange(4))
            elif depth < _DEEPEST:
                if field.is_repeated:
                    for _ in range(rng.randrange(3)):
                        self._fill(getattr(message, field.name).add(), depth + 1)
                else:
                    inner = getattr(message, field.name)
                    inner.SetInParent()
                    self._fill(inner, depth + 1)

    def _scalar(self, field: FieldDescriptor) -> Any:
        rng = self._rng
        if field.enum_type is not None:
            known = [value.number for value in field.enum_type.values]
            return rng.choice((*known, len(known), 99, -1, 2**31 - 1, -(2**31)))
        if field.type == FieldDescriptor.TYPE_BYTES:
            blob = rng.choice((*self.blobs, rng.randbytes(rng.randrange(64))))
            return changed_bytes(blob, rng) if rng.random() < 0.7 else blob
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.text()
        return rng.choice(_SCALARS[field.cpp_type])

    def text(self) -> str:
        """Returns a text: a word, one that is trouble somewhere, or a long one."""
        rng = self._rng
        if rng.random() < _RARE:
            return "y" * _RARE_LENGTH
        how = rng.random()
        if how < 0.45:
            return rng.choice(self.words)
        if how < 0.85:
            return rng.choice(TEXTS)
        return rng.choice(("z", "é", "\U0001f4a5")) * rng.choice(_LENGTHS)


def _is_map(field: FieldDescriptor) -> bool:
    entry: Descriptor | None = field.message_type
    return entry is not None and entry.GetOptions().map_entry
