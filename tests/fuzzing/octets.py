"""Wrong bytes and wrong documents, made from right ones."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import tomli_w

_TOKENS = (
    b"", b"0", b"-1", b"1", b"1e999", b"-1e400", b"nan", b"inf", b"-inf", b"NaN", b"Infinity",
    b"9223372036854775808", b"-9223372036854775809", b"1" * 400, b"1" * 5_000, b"1.7e308",
    b"5e-324", b"true", b"false", b"null", b"[]", b"{}", b'""', b'"a"', b"0x10", b"1_000",
    b"1979-05-27T07:32:00Z", b"[" * 2_000, b"{" * 2_000, b'{"a":' * 2_000, b"\xff\xfe", b"\0",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r\n", b"\n\n", b'"', b"'", b",", b"#", b"=", b"\\u0000",
    b"\\ud800", b"a" * 300,
)  # fmt: skip
_WORD = re.compile(rb"[A-Za-z0-9_.+-]+")
_MOST_BYTES = 1_000_000
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63 - 1, -(2**63), 2**63, 10**400, 0.0, 0.5, -1.0, 1e308,
    5e-324, float("inf"), float("-inf"), float("nan"), "", "a", "A b", "x" * 65, "x" * 100_000,
    "\0", "../x", "1", "nan", [], [[]], [1, "a"], ["a"] * 2_000, {}, {"a": 1}, {"": ""},
)  # fmt: skip


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Returns bytes changed in a few places: flipped, cut, put in, doubled, moved."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _changed_once(data, rng)[:_MOST_BYTES]
    return data


def _changed_once(data: bytes, rng: random.Random) -> bytes:
    size = len(data)
    place = rng.randrange(size + 1)
    end = min(size, place + rng.choice((1, 1, 2, 4, 8, 64, 1_024)))
    how = rng.randrange(8)
    if how == 0 and place < size:
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if how == 1:
        return data[:place]
    if how == 2:
        return data[:place] + data[end:]
    if how == 3:
        return data[:place] + rng.randbytes(rng.choice((1, 2, 4, 8, 32))) + data[place:]
    if how == 4:
        return data[:end] + data[place:end] * rng.choice((1, 3, 50)) + data[end:]
    if how == 5:
        number = rng.choice((0, 1, 2**7, 2**8 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1))
        width = rng.choice((1, 2, 4, 8))
        written = (number % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "big")))
        return b"".join((data[:place], written, data[place + width :]))
    words = list(_WORD.finditer(data, max(0, place - 200), place + 200))
    if how == 6 and words:
        word = rng.choice(words)
        return data[: word.start()] + rng.choice(_TOKENS) + data[word.end() :]
    return data[:place] + rng.choice(_TOKENS) + data[place:]


def changed_lines(data: bytes, rng: random.Random) -> bytes:
    """Returns a text with lines left out, doubled, moved or run together, or changed as bytes."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 2 or rng.random() < 0.6:
        return changed_bytes(data, rng)
    place = rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        del lines[place]
    elif how == 1:
        lines[place:place] = [lines[place]] * rng.choice((1, 2, 300))
    elif how == 2:
        other = rng.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    else:
        lines[place] = lines[place].rstrip(b"\r\n")
    return b"".join(lines)[:_MOST_BYTES]


def changed_document(document: Any, rng: random.Random) -> Any:
    """Returns a table or list (of JSON or TOML) with values changed, left out or put in."""
    changed = json.loads(json.dumps(document, default=str))
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(changed))
        if not places:
            return rng.choice(VALUES)
        owner, key = rng.choice(places)
        how = rng.randrange(6)
        if how == 0:
            del owner[key]
        elif how == 1 and isinstance(owner, dict):
            owner[rng.choice(("", "a", "name", "x" * 200, "é", str(key) + "x"))] = copy.deepcopy(
                owner[key]
            )
        elif how == 2 and isinstance(owner, list):
            owner.extend([copy.deepcopy(owner[key])] * rng.choice((1, 3, 1_000)))
        elif how == 3:
            other, name = rng.choice(places)
            # A part of the document in another's place; a copy, so that it stays a tree.
            owner[key] = copy.deepcopy(other[name]) if name in _keys(other) else None
        else:
            owner[key] = copy.deepcopy(rng.choice(VALUES))
    return changed


def _keys(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else range(len(owner))


def _places(document: Any) -> Any:
    """Yields (owner, key) of every value of a document."""
    waiting = [document]
    while waiting:
        owner = waiting.pop()
        for key in list(_keys(owner)):
            yield owner, key
            if isinstance(owner[key], dict | list):
                waiting.append(owner[key])


def json_bytes(document: Any) -> bytes:
    """Returns a document as JSON, with the NaN and infinity that Python would read."""
    return json.dumps(document).encode()


def toml_bytes(document: Any) -> bytes:
    """Returns a document as TOML; what TOML cannot hold is left out."""
    table = _without_none(document)
    if not isinstance(table, dict):
        return json_bytes(document)
    try:
        return tomli_w.dumps(table).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError):
        return json_bytes(document)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_none(each) for each in value if each is not None]
    return value
