"""Checks of arguments: a wrong one is named before anything is sent."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence

_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]/:\s]+):[0-9]{1,5}")
_TEXTS = ("prompt", "task", "tier", "request_id", "conversation_id", "slo_kind", "status")
_NUMBERS = ("deadline_s", "temperature", "quality_floor", "latency_s", "quality", "timeout_s")
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
_OPTIONAL = frozenset({
    "deadline_s", "latency_s", "quality", "max_output_tokens", "seed", "ticket", "request_id",
})  # fmt: skip


def check(**given: object) -> None:
    """Checks arguments by their names.

    Raises:
        TypeError: One is of a wrong type; the message names it, and says what it must be.
        ValueError: A number is infinite or not a number.
    """
    for name, value in given.items():
        usual, kind, words = _KINDS[name]
        if type(value) is usual or (value is None and name in _OPTIONAL):
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            hint = ""
            if name == "prompt" and isinstance(value, list):
                hint = ": write the messages of a chat as one text"
            raise TypeError(f"{name}: must be {words}, got {_shown(value)}{hint}")
        if isinstance(value, numbers.Real) and not math.isfinite(value):
            raise ValueError(f"{name}: must be finite, got {value}")


def check_addresses(addresses: Sequence[object]) -> list[str]:
    """Returns router addresses.

    Raises:
        TypeError: One is no text.
        ValueError: There is none, or one is neither host:port nor a name that gRPC resolves.
    """
    checked = []
    for address in addresses:
        if not isinstance(address, str):
            raise TypeError(f"addresses: must be texts, got {_shown(address)}")
        if not address.startswith(_SCHEMES) and not _HOST_PORT.fullmatch(address):
            without = re.sub(r"^[a-z]+://|/.*$", "", address)
            hint = f"; try {without!r}" if _HOST_PORT.fullmatch(without) else ""
            raise ValueError(f"addresses: expected host:port, got {address!r}{hint}")
        checked.append(address)
    if not checked:
        raise ValueError("addresses: at least one router address (host:port) is needed")
    return checked


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
