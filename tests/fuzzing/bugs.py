"""What a fuzzed part logs that it must not."""

from __future__ import annotations

import logging


class Bugs(logging.Handler):
    """Notes what is logged with a traceback."""

    def __init__(self) -> None:
        """Has seen nothing."""
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Notes a line that has a traceback."""
        if record.exc_info:
            self.seen.append(f"{record.getMessage()}: {record.exc_info[1]!r}")
