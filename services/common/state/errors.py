"""Why the shared state could not be read or written."""

from __future__ import annotations


class StateUnavailableError(Exception):
    """The store cannot be reached or did not answer in time; the caller goes on without it."""


class StoredDataError(Exception):
    """What is stored is not what was ever written there; the caller sets it aside."""


class VersionMismatchError(Exception):
    """Somebody else wrote first.

    Args:
        what: What was written.
        expected: Number the caller had seen.
        found: Number that is there.
    """

    def __init__(self, what: str, expected: int, found: int) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.expected = expected
        self.found = found
