"""Server-sent events as their data."""

from __future__ import annotations

from services.common.tiers.errors import bad_answer

MOST_EVENT_BYTES = 256 * 1024
"""Longest event; one has a few hundred bytes."""


_MARK = b"\xef\xbb\xbf"


class EventReader:
    """Splits a stream of bytes, as they come, into the data of its events.

    By the rules of server-sent events in the HTML standard: a line ends with LF, CR or both, and a
    mark of UTF-8 may stand before the first. An event that the stream ends in is none.
    """

    __slots__ = ("_data", "_data_bytes", "_has_begun", "_is_after_cr", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._has_begun = False
        self._is_after_cr = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Returns the data of the events that are complete with these bytes.

        Raises:
            TierUnavailableError: An event is longer than any may be.
        """
        if self._is_after_cr or b"\r" in piece:
            piece = self._with_plain_ends(piece)
        *lines, rest = piece.split(b"\n")
        events: list[bytes] = []
        if lines:
            if self._rest:
                lines[0] = bytes(self._rest) + lines[0]
                self._rest.clear()
            if not self._has_begun:
                self._has_begun = True
                lines[0] = lines[0].removeprefix(_MARK)
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._data_bytes += len(line)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
            elif line == b"data":
                self._data.append(b"")
                self._data_bytes += len(line)
            # All else is a comment, or a field that says nothing about the answer.
        # Kept apart until the line ends: a long one in many pieces is copied once.
        self._rest += rest
        if len(self._rest) + self._data_bytes > MOST_EVENT_BYTES:
            raise bad_answer(f"an event of more than {MOST_EVENT_BYTES} bytes")
        return events

    def _with_plain_ends(self, piece: bytes) -> bytes:
        """Returns a piece with LF alone as the end of lines; CR and LF may come apart."""
        if self._is_after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._is_after_cr = False
        if piece:
            self._is_after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
