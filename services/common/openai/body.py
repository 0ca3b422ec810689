"""Reads JSON objects field by field: each has a type, and what is not known is not passed over."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from services.common.errors import InvalidArgumentError

BODY = "body"
"""How an error names a body that is wrong as a whole."""
CODE_NOT_SERVED = "UNSUPPORTED_PARAMETER"
CODE_UNKNOWN = "UNKNOWN_PARAMETER"
MOST_TOKENS = 2**31 - 1
_MOST_NAME_CHARACTERS = 64


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


# json.loads would make a decoder for each body.
_DECODE = json.JSONDecoder(parse_constant=_refuse_constant).decode


def parse_json(data: bytes) -> dict[str, Any]:
    """Returns the object that a body holds.

    Raises:
        InvalidArgumentError: It is no JSON object in UTF-8.
    """
    try:
        found = _DECODE(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(BODY, f"is not valid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise InvalidArgumentError(BODY, "is nested too deeply") from None
    except ValueError as error:  # also a number of thousands of digits
        at = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidArgumentError(BODY, f"is no valid JSON{at}") from None
    if not isinstance(found, dict):
        raise InvalidArgumentError(BODY, f"is {kind_of(found)}", "an object")
    return found


def kind_of(value: object) -> str:
    """Returns what a value is, for messages; values themselves may be prompts."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"


class Fields:
    """The fields of one JSON object; null counts as not given.

    Args:
        values: The object.
        path: Where it stands, before its fields' names; empty for the body.
    """

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values = values
        self._prefix = f"{path}." if path else ""

    def path(self, name: str) -> str:
        """Returns where a field stands in the request."""
        return f"{self._prefix}{name}"

    def get(self, name: str) -> Any:
        """Returns a field's value whatever it is; None if it is not given."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """Returns a text; None if it is not given.

        Raises:
            InvalidArgumentError: It is something else, or no Unicode text.
        """
        value = self._values.get(name)
        # A path is made only to name what is wrong.
        if value is None or (isinstance(value, str) and value.isascii()):
            return value
        return as_text(self.path(name), value)

    def flag(self, name: str) -> bool:
        """Returns a boolean, False if it is not given; raises InvalidArgumentError otherwise."""
        value = self._values.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self._wrong(name, value, "true or false")

    def whole(self, name: str, low: int, high: int) -> int | None:
        """Returns a whole number within its limits; None if it is not given.

        Raises:
            InvalidArgumentError: It is something else, or beyond its limits.
        """
        value = self._values.get(name)
        if value is None:
            return None
        limit = f"a whole number from {low} to {high}"
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, limit)
        if not low <= value <= high:
            # A number of any length must not be written out.
            shown = str(value) if abs(value) < 10**18 else "of too many digits"
            raise InvalidArgumentError(self.path(name), f"is {shown}", limit)
        return value

    def number(self, name: str) -> float | None:
        """Returns a finite number; None if it is not given, InvalidArgumentError otherwise."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(name, value, "a number")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise InvalidArgumentError(self.path(name), "is too large", "a finite number")
        return found

    def table(self, name: str) -> Mapping[str, Any] | None:
        """Returns an object; None if it is not given, InvalidArgumentError otherwise."""
        value = self._values.get(name)
        if value is None or isinstance(value, dict):
            return value
        raise self._wrong(name, value, "an object")

    def only(
        self,
        served: frozenset[str],
        neutral: Mapping[str, tuple[object, ...]] = MappingProxyType({}),
    ) -> None:
        """Refuses every other field, and fields that would change what is not served.

        Args:
            served: Fields that are read.
            neutral: Fields of OpenAI's interface that are not served, with the values that ask for
                nothing beyond what is done anyway.

        Raises:
            InvalidArgumentError: Names the field.
        """
        for name, value in self._values.items():
            if name in served or value is None:
                continue
            allowed = neutral.get(name)
            if allowed is None:
                shown = self.path(name)
                if len(shown) > _MOST_NAME_CHARACTERS or not shown.isprintable():
                    shown = ascii(shown[:_MOST_NAME_CHARACTERS])
                raise InvalidArgumentError(shown, "is unknown here", reason=CODE_UNKNOWN)
            if not any(_is_same(value, each) for each in allowed):
                values = ", ".join(json.dumps(each) for each in allowed)
                raise not_served(self.path(name), values and f"only {values}")

    def _wrong(self, name: str, value: object, limit: str) -> InvalidArgumentError:
        return InvalidArgumentError(self.path(name), f"is {kind_of(value)}", limit)


def not_served(field: str, served: str = "") -> InvalidArgumentError:
    """Returns the error of a field that this door does not serve; `served` says what it does."""
    return InvalidArgumentError(field, "is not served here", served, reason=CODE_NOT_SERVED)


def token_limit(fields: Fields) -> tuple[str, int | None]:
    """Returns the limit of output tokens of a conversation, and the name that gave it.

    Raises:
        InvalidArgumentError: It is no number, or OpenAI's two names contradict each other.
    """
    limit = fields.whole("max_completion_tokens", 1, MOST_TOKENS)
    older = fields.whole("max_tokens", 1, MOST_TOKENS)
    if limit is None:
        return "max_tokens", older
    if older is not None and older != limit:
        raise InvalidArgumentError("max_tokens", "is not what max_completion_tokens says")
    return "max_completion_tokens", limit


def as_text(field: str, value: object) -> str:
    """Returns a value that must be a text of Unicode; InvalidArgumentError otherwise."""
    if not isinstance(value, str):
        raise InvalidArgumentError(field, f"is {kind_of(value)}", "a text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            problem = f"holds half a surrogate pair at character {error.start}"
            raise InvalidArgumentError(field, problem, "Unicode text") from None
    return value


def _is_same(value: object, allowed: object) -> bool:
    """Returns whether two JSON values are equal; in Python true would be 1."""
    return isinstance(value, bool) == isinstance(allowed, bool) and value == allowed
