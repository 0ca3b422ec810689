"""Why a service could not start or had to end, in one line for the person who started it."""

from __future__ import annotations

START_EXIT_CODE = 1


class StartError(Exception):
    """The service cannot start: a port in use, a missing part.

    Args:
        message: One line that names the part and what to change.
        exit_code: Exit code of the process.
    """

    def __init__(self, message: str, exit_code: int = START_EXIT_CODE) -> None:
        super().__init__(message)
        self.exit_code = exit_code
