"""Why a service could not start, in one line for the person who started it."""

from __future__ import annotations


class StartError(Exception):
    """The service cannot start: a port in use, a missing part; the text says what to change."""
