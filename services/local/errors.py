"""Errors a command ends with: one line for the user and an exit code, never a traceback."""

from __future__ import annotations


class CommandError(Exception):
    """Something failed while the command ran, for instance a mesh that does not answer."""

    exit_code = 1


class InputError(CommandError):
    """What the user typed, or a file the user gave, is wrong."""

    exit_code = 2


class NotReachedError(CommandError):
    """Nobody answers at an address."""
