"""Which candidates this router leaves alone because they fail, and how they come back."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

SILENT = "SILENT"
"""Reason of failures that are nothing but silence."""


class BreakerState(enum.Enum):
    """Where a candidate stands."""

    CLOSED = "closed"
    EJECTED = "ejected"
    PROBING = "probing"
    RAMPING = "ramping"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a candidate is ejected and how it comes back.

    Attributes:
        eject_after_failures: failures without a complete answer between them that eject.
        eject_s: first ejection, seconds; doubles with every failed probe.
        eject_max_s: longest ejection, seconds.
        silent_eject_s: silence after which requests that ran out of time, or that there was no room
            for, count as failures, seconds.
        ramp_s: time from the first good probe to the full share, seconds.
    """

    eject_after_failures: int = 3
    eject_s: float = 0.5
    eject_max_s: float = 8.0
    silent_eject_s: float = 3.0
    ramp_s: float = 2.0


# The share a candidate starts with when it comes back, and the one that lets a probe through: the
# policy still has to choose it, and `allowed_mask` opens it to everybody when nothing else is left.
_FIRST_SHARE = 0.1
# The share of a candidate that is ejected on doubt only. It is never closed altogether: whatever a
# caller can make a tier say, there is a place left for everybody's requests, and one good answer
# opens it again.
_DOUBT_SHARE = 0.002
_PAUSE_SHARE = 0.5
"""Most that the time between two refusals counts for, as a part of `silent_eject_s`."""


class Breaker:
    """Failures of one candidate, and what share of its traffic it gets.

    | state | share | goes on as |
    |---|---|---|
    | closed | all | ejected, after several failures without a complete answer between them |
    | ejected | none | probing, after `eject_s`, which doubles with every failed probe |
    | probing | one request at a time | ramping, at a token of it; ejected, if it fails |
    | ramping | a tenth, then more | closed, after `ramp_s`; ejected, at a failure |

    Three kinds of failures are not plain. Silence is a failure only where nobody else had a word
    for `silent_eject_s`, and so is a refusal for want of room. Of a failure that may be the
    request's own fault a doubt stays: what such failures eject keeps a small share, and any token
    of it begins the ramp.

    Who dispatches a request says so (`on_dispatch`), and later how it went: `on_answer`,
    `on_failure`, `on_silence`, `on_refusal` or `on_unknown`. A probe of which that is not said has
    no end, and is followed by no other.
    """

    __slots__ = (
        "_asked_s",
        "_backoff_s",
        "_failures",
        "_is_doubt",
        "_last_s",
        "_limits",
        "_on_change",
        "_probe_running",
        "_ramp_start_s",
        "_refusal_s",
        "_refusing_s",
        "_state",
        "_until_s",
        "last_reason",
    )

    def __init__(self, limits: BreakerLimits, on_change: Callable[[], None]) -> None:
        """Starts closed; calls `on_change` whenever its state has changed."""
        self._limits = limits
        self._on_change = on_change
        self._failures = 0
        self._is_doubt = False
        self._backoff_s = limits.eject_s
        self._until_s = 0.0
        self._ramp_start_s = 0.0
        self._probe_running = False
        self._asked_s: float | None = None
        self._last_s = 0.0
        # The last refusal since a token came, and for how long there have been nothing but such.
        self._refusal_s: float | None = None
        self._refusing_s = 0.0
        self._state = BreakerState.CLOSED
        self.last_reason = ""

    @property
    def state(self) -> BreakerState:
        """Where the candidate stands."""
        return self._state

    @property
    def settled(self) -> bool:
        """True if its availability is 1 and does not change with time."""
        return self.state is BreakerState.CLOSED

    @property
    def is_silent(self) -> bool:
        """True if it is left alone for its silence, or tried again after that."""
        is_out = self._state in (BreakerState.EJECTED, BreakerState.PROBING)
        return is_out and self.last_reason == SILENT

    def availability(self, now_s: float) -> float:
        """Returns the share of its normal traffic it may get, 0 to 1."""
        state = self.state
        if state is BreakerState.CLOSED:
            return 1.0
        if state is BreakerState.EJECTED and now_s >= self._until_s:
            self._probe_running = False
            self._become(state := BreakerState.PROBING)
        least = _DOUBT_SHARE if self._is_doubt else 0.0
        if state is BreakerState.EJECTED:
            return least
        if state is BreakerState.PROBING:
            return least if self._probe_running else _FIRST_SHARE
        share = (now_s - self._ramp_start_s) / self._limits.ramp_s
        if share >= 1.0:
            self._backoff_s = self._limits.eject_s
            self._become(BreakerState.CLOSED)
            return 1.0
        return max(_FIRST_SHARE, share)

    def retry_after_s(self, now_s: float) -> float:
        """Returns how long it is still left alone, seconds; 0 if it is not."""
        return max(0.0, self._until_s - now_s) if self.state is BreakerState.EJECTED else 0.0

    def on_dispatch(self, now_s: float) -> None:
        """Counts a request sent; while probing it is the probe."""
        pause_s = now_s - self._last_s
        if self._asked_s is None:
            self._asked_s = now_s
        elif pause_s > self._limits.silent_eject_s:
            self._asked_s += pause_s  # nobody asked meanwhile, so nobody met silence
        self._last_s = now_s
        if self.state is BreakerState.PROBING:
            self._probe_running = True

    def on_answer(self, now_s: float) -> None:
        """Counts a complete answer."""
        self._failures = 0
        self.on_sign_of_life(now_s)

    def on_sign_of_life(self, now_s: float) -> None:
        """Counts a token, which undoes no failure: an endpoint may break off all it begins."""
        self._asked_s = self._refusal_s = None
        self._refusing_s = 0.0
        is_doubted = self._is_doubt and self.state is BreakerState.EJECTED
        if is_doubted or self.state is BreakerState.PROBING:
            self._ramp_start_s = now_s
            self._become(BreakerState.RAMPING)

    def on_failure(self, now_s: float, reason: str, *, is_doubt: bool = False) -> bool:
        """Counts a failure of the endpoint (not of the request); returns True if it ejects.

        Args:
            now_s: monotonic seconds.
            reason: what happened.
            is_doubt: True if the request may have been at fault after all: such failures leave the
                candidate a small share.
        """
        if is_doubt and self.state is BreakerState.EJECTED:
            return False
        self.last_reason = reason
        self._failures += 1
        self._is_doubt = is_doubt or (self._is_doubt and self._failures > 1)
        if self.state is BreakerState.EJECTED:
            return False
        if self.state is BreakerState.CLOSED and self._failures < self._limits.eject_after_failures:
            return False
        if self.state is not BreakerState.CLOSED:
            self._backoff_s = min(2.0 * self._backoff_s, self._limits.eject_max_s)
        self._until_s = now_s + self._backoff_s
        self._failures = 0
        self._become(BreakerState.EJECTED)
        return True

    def on_silence(self, now_s: float, sent_s: float = math.inf) -> bool:
        """Counts a request that ran out of time without a token; returns True if it ejects.

        Under overload that is normal, so it counts only where nothing at all has come for a while,
        since the first request that was not answered, long pauses between requests left out.

        Args:
            now_s: monotonic seconds.
            sent_s: when the request was sent. One from before the candidate was left alone says
                nothing of the probe that runs now.
        """
        self._last_s = now_s
        if self.state is BreakerState.PROBING:
            return sent_s >= self._until_s and self.on_failure(now_s, SILENT)
        if self._asked_s is None or now_s - self._asked_s < self._limits.silent_eject_s:
            return False
        return self.on_failure(now_s, SILENT)

    def on_refusal(self, now_s: float, reason: str) -> bool:
        """Counts a request that there was no room for; returns True if it ejects.

        Who is busy answers others meanwhile. One that has no room for anybody looks idle, and would
        be sent nearly everything. It is doubted only: some servers say so of requests that are too
        large. Of a long pause between two refusals a part counts, so that one after it, together
        with those of a burst that follows, is not enough.

        Args:
            now_s: monotonic seconds.
            reason: what it said.
        """
        longest_s = self._limits.silent_eject_s
        if self._refusal_s is not None:
            self._refusing_s += min(now_s - self._refusal_s, _PAUSE_SHARE * longest_s)
        self._refusal_s = now_s
        if self._refusing_s >= longest_s:
            return self.on_failure(now_s, reason, is_doubt=True)
        self.on_unknown()
        return False

    def on_unknown(self) -> None:
        """Ends a probe that says nothing about the candidate (a cancelled client, a rescue)."""
        if self.state is BreakerState.PROBING:
            self._probe_running = False

    def _become(self, state: BreakerState) -> None:
        self._state = state
        self._on_change()
