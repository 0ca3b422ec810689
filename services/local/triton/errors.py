"""Why a Triton server could not be started or kept running."""

from __future__ import annotations


class TritonServerError(Exception):
    """A Triton server could not be started or kept running; the text is one clear line."""


class TritonEnvironmentError(TritonServerError):
    """The Python environment that carries the Triton binary is missing or incomplete."""


class TritonStoppedError(TritonServerError):
    """The start was broken off because the caller asked for it."""


class PortInUseError(TritonServerError):
    """A fixed port that Triton was told to listen on is taken by another process."""


class ModelLoadError(TritonServerError):
    """Triton refused a model of the repository; the text carries Triton's own reason."""
