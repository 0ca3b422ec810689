"""One line of time out of the wall clocks of routers and of this host, which may be set meanwhile.

Records of all routers are merged by their stamps. A clock that is set back would make everything
stamped afterwards older than what was learned from, and so of no use, for as long as it was ahead.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from services.common.clock import Clock
from services.trainer.convert import MAX_AHEAD_S
from trainer.learning.online.joining import DecisionRecord

_SET_BACK_S = 1.0
"""A router's next decision is this much older than its last one only if its clock was set back."""
_LONG_AGO_S = 600.0
"""What is read again of a router's former process is younger than this."""
_MOST_ROUTERS = 10_000


class _Last(NamedTuple):
    """The last decision of a router: its number, where it was placed, and by how much later."""

    epoch: int
    sequence: int
    time_s: float
    shift_s: float


class RouterClocks:
    """Places decisions on the line."""

    def __init__(self, clock: Clock) -> None:
        """Knows no router yet."""
        self._clock = clock
        self._ahead_s = float("-inf")
        self._set_back_s = 0.0
        self._last: dict[str, _Last] = {}

    def now_s(self) -> float:
        """Returns this host's wall clock as if it were never set back, seconds since 1970."""
        monotonic_s = self._clock.monotonic_s()
        ahead_s = self._clock.wall_ns() / 1e9 - monotonic_s
        self._ahead_s = max(self._ahead_s, ahead_s)
        self._set_back_s = self._ahead_s - ahead_s
        return monotonic_s + self._ahead_s

    def placed(self, decision: DecisionRecord, now_s: float) -> DecisionRecord:
        """Returns a decision with its place on the line instead of its stamp.

        A router's decisions come in the order of their numbers, but for those read again. One that
        steps back is taken to follow the one before, and so are those behind it, until that would
        put them in the future: then the clock was set right.

        A router that is heard for the first time goes by the clock that this host has now. Where
        that was set back, the routers before it go on as if it had not been, and so must this one.
        """
        router, epoch, sequence = decision.key
        last = self._last.pop(router, None)
        if last is None:
            shift_s = self._set_back_s
            if shift_s <= _SET_BACK_S or decision.time_s + shift_s > now_s + MAX_AHEAD_S:
                shift_s = 0.0
            last = _Last(epoch, 0, decision.time_s + shift_s, shift_s)
        shift_s = last.shift_s
        if shift_s and decision.time_s + shift_s > now_s + MAX_AHEAD_S:
            shift_s = 0.0
        behind_s = last.time_s - (decision.time_s + shift_s)
        is_next = epoch > last.epoch or (epoch == last.epoch and sequence > last.sequence)
        # A former process's records read again; or one that started with its clock set back.
        is_next |= epoch < last.epoch and now_s - decision.time_s > _LONG_AGO_S
        if is_next and behind_s > _SET_BACK_S:
            shift_s += behind_s
        time_s = decision.time_s + shift_s
        self._last[router] = _Last(epoch, sequence, time_s, shift_s) if is_next else last
        if len(self._last) > _MOST_ROUTERS:
            del self._last[next(iter(self._last))]
        return dataclasses.replace(decision, time_s=time_s) if shift_s else decision
