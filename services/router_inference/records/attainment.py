"""How the tasks' targets were met over the last minute, and when their answers came."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.router_inference.records.accounts import REWARD
from services.router_inference.records.router_counts import RouterCounts

WINDOW_S = 60.0
_STEP_S = 1.0

_Counted = NDArray[np.float64]


class Attainment(NamedTuple):
    """What came of one task's target.

    Attributes:
        task: its name.
        target: the target in force; 0 = none.
        settings_target: that of the settings.
        on_time: requests answered in time over about the last minute.
        missed: requests late, refused or failed over the same time.
        reward: sum of delivered rewards over the same time.
    """

    task: str
    target: float
    settings_target: float
    on_time: int = 0
    missed: int = 0
    reward: float = 0.0


class Attainments:
    """Counts of a minute, of all the workers of a router."""

    def __init__(
        self, counts: RouterCounts, targets: Callable[[], Mapping[str, tuple[float, float]]]
    ) -> None:
        """Starts without a history.

        Args:
            counts: the router's.
            targets: returns each task's target in force, and that of the settings.
        """
        self._counts = counts
        self._targets = targets
        self._history: deque[tuple[float, _Counted, _Counted]] = deque()
        self._latencies: _Counted = np.zeros((0, 0))

    def note(self, now_s: float) -> None:
        """Remembers what is counted up to now; call it about once a second."""
        history = self._history
        if history and now_s - history[-1][0] < _STEP_S:
            return
        history.append((now_s, self._counts.by_task(), self._counts.latencies()))
        while len(history) > 1 and now_s - history[1][0] >= WINDOW_S:
            history.popleft()
        self._latencies = _since(history[0][2], history[-1][2])

    def latencies(self) -> dict[str, NDArray[np.float64]]:
        """Returns `Accounts.latencies` of about the last minute, by task."""
        return dict(zip(self._counts.tasks, self._latencies, strict=False))

    def read(self) -> list[Attainment]:
        """Returns what came of the targets, in the tasks' order."""
        now_KW = self._counts.by_task()
        before_KW = self._history[0][1] if self._history else now_KW[:0]
        rows = dict(zip(self._counts.tasks, _since(before_KW, now_KW).tolist(), strict=False))
        found = []
        for task, (target, settings_target) in self._targets().items():
            on_time, late, refused, failed, *_ = row = rows.get(task) or [0.0] * (REWARD + 1)
            missed = round(late + refused + failed)
            found.append(
                Attainment(task, target, settings_target, round(on_time), missed, row[REWARD])
            )
        return found


def _since(before_KW: _Counted, now_KW: _Counted) -> _Counted:
    """Returns by how much counts have grown; they fall where a killed worker's last ones are gone.

    A task that came with other settings has no row yet in the older ones.
    """
    before_KW = np.vstack([before_KW, np.zeros_like(now_KW[len(before_KW) :])])
    return np.maximum(0.0, now_KW - before_KW[: len(now_KW)])
