"""Checks of what a request or a stored message says: one way to state ranges, lengths and counts.

Every number has a range, every text a length, every list a count. What is wrong is collected, so
that a caller learns of several mistakes at once, but never of more than `MAX_VIOLATIONS`: there
checking stops, whatever else is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sized

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import MAX_VIOLATIONS, InvalidArgumentError, with_limit
from services.common.times import seconds_of

MAX_COUNT = 2**53
"""Largest count of anything: the largest whole number that a double still tells from the next."""
MAX_RATE_RPS = 1e9
"""Largest rate one process may claim, per second."""
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")
MAX_NAME_CHARACTERS = 64
MAX_WALL_S = 253_402_300_799.0
"""The last second of the year 9999, where protobuf's timestamps end."""
_NS_PER_S = 1_000_000_000


def is_name(text: str) -> bool:
    """Returns whether a text is a name of the mesh: 1 to 64 characters of [a-z0-9_-]."""
    return 0 < len(text) <= MAX_NAME_CHARACTERS and _NAME_CHARACTERS.issuperset(text)


class Checks:
    """Collects what is wrong; a check that fails for the `MAX_VIOLATIONS`-th time raises.

    Args:
        prefix: Put before every field's path, e.g. `load.`.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._found: list[tuple[str, str, str]] = []

    def require(self, good: bool, field: str, problem: str, limit: str = "") -> bool:
        """Notes a problem unless `good`; returns `good`. Without a field it is the whole's."""
        if not good:
            path = self._prefix + field if field else self._prefix.rstrip(".")
            self._found.append((path, problem, limit))
            if len(self._found) >= MAX_VIOLATIONS:
                self.raise_if_any()
        return good

    def number(self, field: str, value: float, low: float, high: float, unit: str = "") -> bool:
        """Checks that a number lies within `low` and `high`; NaN lies nowhere."""
        if low <= value <= high:
            return True
        tail = f" {unit}" if unit else ""
        return self.require(False, field, f"is {value:g}{tail}", f"{low:g} to {high:g}{tail}")

    def count(self, field: str, value: int, high: int = MAX_COUNT, low: int = 0) -> bool:
        """Checks that a whole number lies within `low` and `high`."""
        if low <= value <= high:
            return True
        return self.require(False, field, f"is {value}", f"{low} to {high}")

    def text(self, field: str, value: str, most: int, least: int = 0) -> bool:
        """Checks how many characters a text has."""
        if least <= len(value) <= most:
            return True
        problem = f"has {len(value)} characters" if value else "is empty"
        return self.require(False, field, problem, f"{least} to {most} characters")

    def name(self, field: str, value: str, *, optional: bool = False) -> bool:
        """Checks a name: 1 to 64 characters of [a-z0-9_-]."""
        if optional and not value:
            return True
        if not self.text(field, value, MAX_NAME_CHARACTERS, 0 if optional else 1):
            return False
        good = is_name(value) or not value
        return self.require(good, field, "has other characters", "characters of [a-z0-9_-]")

    def items(self, field: str, value: Sized, most: int, least: int = 0) -> bool:
        """Checks how many entries a list has; one that is too long should not be walked."""
        if least <= len(value) <= most:
            return True
        return self.require(False, field, f"has {len(value)} entries", f"{least} to {most} entries")

    def duration(self, field: str, value: Duration, low_s: float, high_s: float) -> float:
        """Checks a span and returns it in seconds; only sensible if the check passed."""
        span_s = seconds_of(value)
        whole = abs(value.nanos) < _NS_PER_S and value.seconds * value.nanos >= 0
        if self.require(whole, field, "is no valid Duration", "nanos of the sign of seconds"):
            self.number(field, span_s, low_s, high_s, "s")
        return span_s

    def moment(self, field: str, value: Timestamp, low_s: float = 0.0) -> float:
        """Checks a moment and returns it in seconds since 1970."""
        wall_s = seconds_of(value)
        whole = 0 <= value.nanos < _NS_PER_S
        if self.require(whole, field, "is no valid Timestamp", "nanos within 0 and 999999999"):
            self.number(field, wall_s, low_s, MAX_WALL_S, "s since 1970")
        return wall_s

    def raise_if_any(self) -> None:
        """Raises InvalidArgumentError with what was found, if anything was."""
        if self._found:
            (field, problem, limit), *others = self._found
            more = [(name, with_limit(what, bound)) for name, what, bound in others]
            raise InvalidArgumentError(field, problem, limit, more=more)


@contextlib.contextmanager
def checks_of_stored(wrong: Callable[[str], Exception]) -> Iterator[Checks]:
    """Has what is wrong with something stored raised: at the end, or once there is too much of it.

    Args:
        wrong: Makes the error of a text: nobody's request is to blame.
    """
    checks = Checks()
    try:
        yield checks
        checks.raise_if_any()
    except InvalidArgumentError as error:
        raise wrong(error.message) from error
