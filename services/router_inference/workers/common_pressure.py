"""One pressure for all workers of a router, of words that each writes for itself.

What a worker raises the pressure by it adds to a running total in its own block (`memory.py`),
which nobody else writes. Every worker keeps a pressure of its own and takes the others' news into
it: what their totals grew by since it last looked. Recent ends, by which the steps of the pressure
are measured, decay by themselves, so those of all are added up. Thus all follow the same events by
the same kernels, each a moment after it came. There is nothing to agree on and no lock. Totals
never fall, so a worker that is killed leaves what it had added, and its successor adds to it.

A total tells nothing of how the pressure has fallen since. So each worker also shows where it
stands, now and then and whenever it raises the pressure; one that starts takes the newest of that.

Which row of the totals is which task follows from the list of tasks. Workers whose lists differ, as
for a moment while all are replaced after a change of settings, take nothing from each other.

Shape letters: W workers, N kinds, K tasks, M moments.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from router.pressure import Pressures
from router.safety import SHORTEST_WINDOW_S
from services.router_inference.workers.memory import (
    HOLD_KINDS,
    HOLD_TASKS,
    LAYOUT,
    Memory,
)

SEEN, CLAIMED = range(2)
"""Kinds: what was seen, and what clients claimed."""
_START_S, _STAND_S, _ENDS_S, _WINDOW_S = range(4)
_LOOK_S = 0.001
"""Least time between two looks at the others, seconds: a fraction of any deadline."""


class Stand(NamedTuple):
    """Where a worker stands.

    Attributes:
        start_s: when the router began to serve, monotonic seconds.
        window_s: deadline of the last request, as time from its arrival, seconds; 0 before it.
        at_s: when the pressures held, monotonic seconds.
        pressure_NK: by kind and task.
    """

    start_s: float
    window_s: float
    at_s: float
    pressure_NK: list[list[float]]


class News(NamedTuple):
    """What the others did.

    Attributes:
        rise_NK: what they raised the pressure by since the last look, by kind and task.
        ends_NK: their recent ends, as of now.
        has_claims: there are ends among them that clients claimed.
    """

    rise_NK: list[list[float]]
    ends_NK: list[list[float]]
    has_claims: bool


class CommonPressure:
    """One worker's side of it."""

    def __init__(self, memory: Memory, number: int) -> None:
        """Takes the memory and the number of this worker."""
        self._hold = memory.hold
        self._at = number - 1
        self._is_known_W = np.zeros(len(memory.blocks), dtype=bool)
        self._taken_WNK = np.zeros_like(memory.hold.totals_WNK)
        self._key = 0
        self._count = 0
        self._looked_s = -math.inf
        self._own_s = -math.inf
        self._own_NK: list[list[float]] = []

    def configure(self, names: Sequence[str]) -> None:
        """Takes the tasks, in their order; those beyond HOLD_TASKS stay each worker's own."""
        key, hold, at = key_of(names), self._hold, self._at
        if key == self._key:
            return
        self._key, self._count = key, min(len(names), HOLD_TASKS)
        # In a place where no worker has been yet, all that comes is news.
        self._is_known_W = hold.key_W == 0
        self._taken_WNK[:] = 0.0
        self._own_NK = [[0.0] * self._count for _ in range(HOLD_KINDS)]
        if hold.key_W[at] == key:  # the predecessor's ends still decay
            self._own_NK = hold.ends_WNK[at, :, : self._count].tolist()
            self._own_s = float(hold.moments_WM[at, _ENDS_S])
        hold.key_W[at] = key

    def look(self, now_s: float, window_s: float) -> News | None:
        """Returns what the others did; None if it has looked a moment ago.

        Args:
            now_s: the present, monotonic seconds.
            window_s: deadline of the request at hand, as time from its arrival, seconds.
        """
        if now_s - self._looked_s < _LOOK_S:
            return None
        self._looked_s = now_s
        hold, count = self._hold, self._count
        key_W = hold.key_W.copy()
        is_same_W = key_W == self._key
        is_same_W[self._at] = False
        totals_WNK = hold.totals_WNK[:, :, :count].copy()
        rise_WNK = totals_WNK - self._taken_WNK[:, :, :count]
        rise_NK = (is_same_W & self._is_known_W) @ rise_WNK.reshape(len(key_W), -1)
        self._taken_WNK[:, :, :count] = totals_WNK
        self._is_known_W = is_same_W | (key_W == 0)
        elapsed_W = np.maximum(0.0, now_s - hold.moments_WM[:, _ENDS_S])
        kept_W = is_same_W * np.exp(-elapsed_W / max(window_s, SHORTEST_WINDOW_S))
        ends_NK = kept_W @ hold.ends_WNK[:, :, :count].reshape(len(key_W), -1)
        ends = ends_NK.reshape(HOLD_KINDS, count).tolist()
        return News(rise_NK.reshape(HOLD_KINDS, count).tolist(), ends, any(ends[CLAIMED]))

    def own_ends(self, kind: int, now_s: float, window_s: float) -> list[float]:
        """Returns this worker's own recent ends of a kind, as of now."""
        elapsed_s = now_s - self._own_s
        if elapsed_s > 0.0:
            kept = _kept(elapsed_s, window_s)
            self._own_NK = [[kept * each for each in row] for row in self._own_NK]
            self._own_s = now_s
        return self._own_NK[kind]

    def add(
        self, kind: int, task: int, rise: float, ended: float, now_s: float, window_s: float
    ) -> None:
        """Tells the others of a rise of the pressure, 0 or more, and of ends."""
        if task >= HOLD_TASKS:
            return
        hold, at = self._hold, self._at
        if rise:
            hold.totals_WNK[at, kind, task] += rise
        if ended:
            self.own_ends(kind, now_s, window_s)[task] += ended
            # Moments first: read in between, ends count as a little younger for once.
            hold.moments_WM[at, _ENDS_S] = self._own_s
            hold.ends_WNK[at, :, : self._count] = self._own_NK

    def show(self, start_s: float, window_s: float, seen: Pressures, claimed: Pressures) -> None:
        """Shows the others where this worker stands; see `Stand`."""
        hold, at, count = self._hold, self._at, self._count
        for kind, pressures in ((SEEN, seen), (CLAIMED, claimed)):
            hold.stand_WNK[at, kind, :count] = pressures.pressure_K[:count]
        moments_M = hold.moments_WM[at]
        moments_M[_START_S], moments_M[_WINDOW_S] = start_s, window_s
        moments_M[_STAND_S] = seen.at_s_1[0]

    def window_s(self) -> float:
        """Returns the longest of the workers' last deadlines, seconds; 0 if none had a request."""
        return float(self._hold.moments_WM[:, _WINDOW_S].max())

    def newest(self, now_s: float) -> Stand | None:
        """Returns where the worker stands that showed it last, its predecessor among them."""
        # First what they added, then where they stand: what comes between is at most taken twice.
        self._looked_s = -math.inf
        self.look(now_s, 1.0)
        hold = self._hold
        shown_W = (hold.key_W == self._key) * hold.moments_WM[:, _STAND_S]
        at = int(np.argmax(shown_W))
        if not shown_W[at] > 0.0:
            return None
        moments = hold.moments_WM[at].tolist()
        pressure_NK = hold.stand_WNK[at, :, : self._count].tolist()
        return Stand(moments[_START_S], moments[_WINDOW_S], moments[_STAND_S], pressure_NK)


def key_of(names: Sequence[str]) -> int:
    """Returns what a list of tasks in this layout is known by, never 0."""
    text = "\0".join((f"layout {LAYOUT}", *names))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1


def _kept(elapsed_s: float, window_s: float) -> float:
    """Returns what is left of ends after some time, as in `router.pressure.relax`."""
    return math.exp(-max(0.0, elapsed_s) / max(window_s, SHORTEST_WINDOW_S))
