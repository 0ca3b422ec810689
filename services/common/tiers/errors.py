"""Why a tier did not answer, whatever its server speaks."""

from __future__ import annotations

QUEUE_TIMEOUT = "QUEUE_TIMEOUT"
"""Reason of an answer that the tier ended at the request's timeout."""
BAD_ANSWER = "BAD_ANSWER"
"""Reason of an answer that no tier may give: too long, or not of the form asked for."""
REASON_DEADLINE = "DEADLINE_EXCEEDED"
"""Reason of an answer that did not come in the time there was for it."""


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


class TierUnknownError(TierError):
    """The tier answered this request with an error that we do not know, or with nothing at all.

    It may be the request's fault or the endpoint's; only what becomes of the request elsewhere
    tells.
    """


def bad_answer(what: str) -> TierUnavailableError:
    """Returns the error of an endpoint that sent what no endpoint may send."""
    return TierUnavailableError(BAD_ANSWER, f"the endpoint sent {what}")
