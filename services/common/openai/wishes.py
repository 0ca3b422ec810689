"""What OpenAI's interface has no field for: task, deadline, floor; as headers, or as metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from router.types import LONGEST_TOKEN_INTERVAL_S, Priority, SloKind
from services.common import priorities
from services.common.checks import is_name
from services.common.errors import InvalidArgumentError
from services.common.openai.body import CODE_UNKNOWN, as_text, kind_of

HEADER_PREFIX = "x-tiercel-"
METADATA_PREFIX = "tiercel_"
_MOST_MS = 86_400_000.0
_MOST_NAME_CHARACTERS = 64
MOST_CONVERSATION_ID_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Wishes:
    """Wishes of one request; what is empty or None was not given.

    Attributes:
        task: Class of the request.
        deadline_ms: Time until the deadline, milliseconds.
        quality_floor: Lowest quality accepted, 0 to 1.
        slo_kind: What the deadline is measured against.
        token_interval_ms: Time between the due times of two tokens, milliseconds.
        conversation_id: The client's id of the conversation that this continues.
        priority: How the request stands beside others.
        given_as: The header or field that each was given by.
    """

    task: str = ""
    deadline_ms: float | None = None
    quality_floor: float | None = None
    slo_kind: SloKind | None = None
    token_interval_ms: float | None = None
    conversation_id: str = ""
    priority: Priority | None = None
    given_as: Mapping[str, str] = field(default_factory=dict)

    def name_of(self, key: str) -> str:
        """Returns the name by which a wish was given, or may be given."""
        return self.given_as.get(key, header_of(key))


_NONE = Wishes()


def header_of(key: str) -> str:
    """Returns the header of a wish."""
    return HEADER_PREFIX + key.replace("_", "-")


def wishes_of(headers: Mapping[str, str], metadata: Mapping[str, Any]) -> Wishes:
    """Reads the wishes of a request. A header goes before metadata: a gateway may set it.

    Args:
        headers: Its headers that begin with `HEADER_PREFIX`.
        metadata: The object `metadata` of its body; fields of other names are the client's own.

    Raises:
        InvalidArgumentError: Names the header or field that is unknown or wrong.
    """
    if not headers and not metadata:
        return _NONE
    found: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for name, value in metadata.items():
        if name.startswith(METADATA_PREFIX):
            key = name.removeprefix(METADATA_PREFIX)
            _take(found, given_as, key, f"metadata.{name}", value)
    for name, text in headers.items():
        key = name.removeprefix(HEADER_PREFIX).replace("-", "_")
        _take(found, given_as, key, name, text)
    return Wishes(**found, given_as=given_as)


def _take(
    found: dict[str, Any], given_as: dict[str, str], key: str, name: str, value: object
) -> None:
    read = _READERS.get(key)
    if read is None:
        shown = name[: len(METADATA_PREFIX) + _MOST_NAME_CHARACTERS]
        shown = shown if shown.isprintable() else ascii(shown)
        known = ", ".join(sorted(header_of(each) for each in _READERS))
        raise InvalidArgumentError(shown, "is unknown here", known, reason=CODE_UNKNOWN)
    found[key], given_as[key] = read(name, value), name


def _task(name: str, value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise InvalidArgumentError(name, "is no name", "1 to 64 characters of [a-z0-9_-]")
    return value


def _number(name: str, value: object, low: float, high: float, unit: str) -> float:
    limit = f"above {low:g} to {high:g}{unit}" if unit else f"{low:g} to {high:g}"
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if math.isnan(number):
        shown = "no number" if isinstance(value, str) else kind_of(value)
        raise InvalidArgumentError(name, f"is {shown}", limit)
    if not low <= number <= high or (unit and number == low):
        raise InvalidArgumentError(name, f"is {number:g}", limit)
    return number


def _deadline_ms(name: str, value: object) -> float:
    return _number(name, value, 0.0, _MOST_MS, " ms")


def _token_interval_ms(name: str, value: object) -> float:
    return _number(name, value, 0.0, LONGEST_TOKEN_INTERVAL_S * 1e3, " ms")


def _quality_floor(name: str, value: object) -> float:
    return _number(name, value, 0.0, 1.0, "")


def conversation_id(name: str, value: object) -> str:
    """Returns a conversation's id.

    Raises:
        InvalidArgumentError: It is no text, or longer than one may be.
    """
    if not isinstance(value, str) or len(value) > MOST_CONVERSATION_ID_CHARACTERS:
        shown = f"has {len(value)} characters" if isinstance(value, str) else "is no text"
        limit = f"at most {MOST_CONVERSATION_ID_CHARACTERS} characters"
        raise InvalidArgumentError(name, shown, limit)
    return as_text(name, value)


def _slo_kind(name: str, value: object) -> SloKind:
    try:
        return SloKind(value)
    except ValueError:
        listed = " or ".join(kind.value for kind in SloKind)
        raise InvalidArgumentError(name, "is none of them", listed) from None


def _priority(name: str, value: object) -> Priority:
    found = None
    if isinstance(value, str):
        found = priorities.of_text(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        found = priorities.of_number(value)
    if found is None:
        raise InvalidArgumentError(name, "is no priority", priorities.KNOWN)
    return found


_READERS: Mapping[str, Callable[[str, object], Any]] = MappingProxyType(
    {
        "task": _task,
        "deadline_ms": _deadline_ms,
        "quality_floor": _quality_floor,
        "slo_kind": _slo_kind,
        "token_interval_ms": _token_interval_ms,
        "conversation_id": conversation_id,
        "priority": _priority,
    }
)
"""Reader of each wish; its header and its field have the same name."""
