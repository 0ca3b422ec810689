"""How a call's time limit is sent, and told to the router that sees what is left of it."""

from __future__ import annotations

import math

TIMEOUT_KEY = "tiercel-timeout-ms"
"""Metadata of a call: the time limit it began with, whole milliseconds."""


def timing(limit_s: float, left_s: float) -> tuple[float, tuple[str, str]]:
    """Returns an attempt's time limit in seconds, and the metadata that says what it began with.

    gRPC does not tell a server the latter. What is left of it when a router sees the call is how
    long the call waited, other routers included that were tried before.

    Args:
        limit_s: Time limit of the whole call, seconds.
        left_s: What is left of it now, seconds.
    """
    sent_s, timeout_s = _as_sent_s(left_s)
    began_with_s = sent_s + (limit_s - left_s)
    return timeout_s, (TIMEOUT_KEY, str(round(began_with_s * 1e3)))


def _as_sent_s(left_s: float) -> tuple[float, float]:
    """Returns what gRPC sends of a time limit, and a limit that is sent as just that.

    It sends three digits, rounded up. What is added so on the way (a second of five minutes) would
    hide from a router that the call waited. From half a step below nothing is added by surprise.
    """
    left_s = max(left_s, 1e-3)
    step_s = max(1e-3, 10.0 ** (math.floor(math.log10(left_s)) - 2))
    sent_s = math.ceil(left_s / step_s) * step_s
    return sent_s, sent_s - step_s / 2
