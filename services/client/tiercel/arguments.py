"""Checks of arguments: a wrong one is named before anything is sent."""

from __future__ import annotations

import math
import numbers
import re
import sys
from collections.abc import Sequence

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]/:\s]+):[0-9]{1,5}")
_PORT = re.compile(r":([0-9]+)$")
_HIGHEST_PORT = 65_535
_TEXTS = (
    "prompt", "task", "tier", "request_id", "conversation_id", "slo_kind", "status", "priority",
)  # fmt: skip
_NUMBERS = (
    "deadline_s", "token_interval_s", "temperature", "quality_floor", "latency_s", "quality",
    "timeout_s",
)  # fmt: skip
_COUNTS = (
    "max_output_tokens", "prompt_token_count", "output_token_count", "seed", "connections",
)  # fmt: skip
_KINDS: dict[str, tuple[type, type, str]] = {
    **dict.fromkeys(_TEXTS, (str, str, "a text")),
    **dict.fromkeys(_NUMBERS, (int, numbers.Real, "a number")),
    **dict.fromkeys(_COUNTS, (int, numbers.Integral, "a whole number")),
    "ticket": (bytes, bytes, "the bytes of Ticket.ticket"),
}
"""By name: the usual type, which is told fastest, all that is taken, and words for it."""
_MOST: dict[str, float] = {
    # Some 30 years: what is beyond no clock can hold.
    **dict.fromkeys(("deadline_s", "token_interval_s", "latency_s", "timeout_s"), 1e9),
    **dict.fromkeys(("max_output_tokens", "prompt_token_count", "output_token_count"), 2**31 - 1),
    "seed": 2**63 - 1,
    "connections": 1_000,
}
"""By name: what a message can carry, or a process, and no less than minus as much."""
_OPTIONAL = frozenset({
    "deadline_s", "token_interval_s", "latency_s", "quality", "max_output_tokens", "seed", "ticket",
    "request_id",
})  # fmt: skip


def check(**given: object) -> None:
    """Checks arguments by their names.

    Raises:
        TypeError: One is of a wrong type; the message names it, and says what it must be.
        ValueError: A number is infinite, not a number or beyond what a message can carry, or a
            text is none in Unicode.
    """
    for name, value in given.items():
        usual, kind, words = _KINDS[name]
        if value is None and name in _OPTIONAL:
            continue
        if type(value) is not usual and (not isinstance(value, kind) or isinstance(value, bool)):
            hint = ""
            if name == "prompt" and isinstance(value, list):
                hint = ": write the messages of a chat as one text"
            raise TypeError(f"{name}: must be {words}, got {_shown(value)}{hint}")
        if isinstance(value, str):
            _check_text(name, value)
        elif isinstance(value, numbers.Real):
            _check_number(name, value)


def _check_number(name: str, value: numbers.Real) -> None:
    try:
        size = abs(float(value))
    except OverflowError:  # a whole number or a fraction beyond every float
        size = math.inf
    else:
        if not math.isfinite(size):
            raise ValueError(f"{name}: must be finite, got {value}")
    most = _MOST.get(name, sys.float_info.max)
    if size > most:
        raise ValueError(f"{name}: must be at most {most:.12g}, got {_shown(value)}")


def _check_text(name: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place, letter = error.start, text[error.start]
        problem = f"is no valid text: half of a character ({letter!r}) at {place}"
        raise ValueError(f"{name}: {problem}") from None


def check_api_key(key: object) -> None:
    """Checks a key, which no message shows.

    Raises:
        TypeError: It is no text.
        ValueError: It holds what no header can, for instance the line end of its file.
    """
    if not isinstance(key, str):
        raise TypeError(f"api_key: must be a text, got {type(key).__name__}")
    if not (key.isascii() and key.isprintable()):
        raise ValueError("api_key: must be printable ASCII; is the line end of its file in it?")


def check_addresses(addresses: Sequence[object]) -> list[str]:
    """Returns router addresses.

    Raises:
        TypeError: One is no text.
        ValueError: There is none, or one is neither host:port nor a name that gRPC resolves, or
            its port is none (gRPC would take another one).
    """
    checked = []
    for address in addresses:
        if not isinstance(address, str):
            raise TypeError(f"addresses: must be texts, got {_shown(address)}")
        if not address.startswith(_SCHEMES) and not _HOST_PORT.fullmatch(address):
            without = re.sub(r"^[a-z]+://|/.*$", "", address)
            hint = f"; try {without!r}" if _HOST_PORT.fullmatch(without) else ""
            raise ValueError(f"addresses: expected host:port, got {address!r}{hint}")
        _check_text("addresses", address)
        if not address.isprintable():  # gRPC would call what stands before a zero byte
            raise ValueError(f"addresses: expected host:port, got {address!r}")
        port = _PORT.search(address)
        if port is not None and not 1 <= int(port[1]) <= _HIGHEST_PORT:
            problem = f"the port must be a number from 1 to {_HIGHEST_PORT}"
            raise ValueError(f"addresses: {problem}, got {address!r}")
        checked.append(address)
    if not checked:
        raise ValueError("addresses: at least one router address (host:port) is needed")
    return checked


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no whole number of more than some thousand digits
        text = "of too many digits"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
