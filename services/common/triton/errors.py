"""Why a tier did not answer."""

from __future__ import annotations


class TierError(Exception):
    """A tier did not answer a request.

    Attributes:
        reason: Upper-case token for metric labels and `ErrorInfo.reason`.
        detail: What the server said, one line, at most 300 characters.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keeps the reason beside the text; `detail` is cut to one short line."""
        self.reason = reason
        self.detail = " ".join(detail.split())[:300]
        super().__init__(f"{reason}: {self.detail}")


class TierUnavailableError(TierError):
    """The endpoint is gone, or the tier on it is not loaded, lost or broken: try another one."""


class TierOverloadedError(TierError):
    """The tier's own queue was full, or the request waited in it for too long."""


class TierDeadlineError(TierError):
    """The deadline of the call passed before the answer was complete."""


class TierInvalidError(TierError):
    """The tier refused the request itself: sending it elsewhere would not help."""
