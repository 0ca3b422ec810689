"""Server-sent events as their data."""

from __future__ import annotations

from services.common.tiers.errors import bad_answer

MOST_EVENT_BYTES = 256 * 1024
"""Longest event; one has a few hundred bytes."""


class EventReader:
    """Splits a stream of bytes, as they come, into the data of its events."""

    __slots__ = ("_data", "_data_bytes", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the data of the events that are complete with these bytes.

        Raises:
            TierUnavailableError: An event is longer than any may be.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events: list[bytes] = []
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                self._data.append(text[5:].removeprefix(b" "))
                self._data_bytes += len(text)
            elif not text and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
            # All else is a comment, or a field that says nothing about the answer.
        if len(self._rest) + self._data_bytes > MOST_EVENT_BYTES:
            raise bad_answer(f"an event of more than {MOST_EVENT_BYTES} bytes")
        return events
