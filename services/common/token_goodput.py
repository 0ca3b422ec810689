"""Goodput where deadlines are for tokens: answers in time per second, and late ones discounted.

Routers count since they started. What happened over the last moments is the growth of their counts.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as pb

WINDOW_S = 60.0
"""Goodput is over this much time, or over as much as was watched."""
_LONGEST_GAP_S = 30.0
"""After a longer time without a look nothing is known of the time before."""
_STEP_S = 1.0
"""Growth is kept in steps at least this long: routers tell about once a second."""
_KIND_NAMES = {
    common_pb2.SLO_KIND_FIRST_TOKEN: "first_token",
    common_pb2.SLO_KIND_PER_TOKEN: "per_token",
}

Key = tuple[str, str]
"""A task, and what its deadline is for."""
_Sums = NDArray[np.float64]
"""Requests on time, requests that missed, and answers by their lateness."""
DUE = {"first_token": "first token", "per_token": "each token"}
"""What is due in time, in words."""


@dataclass(frozen=True, slots=True)
class TokenGoodput:
    """How requests of one task fare whose deadline is for tokens.

    Attributes:
        task: Its name.
        slo_kind: What the deadline is for: ``first_token`` or ``per_token``.
        on_time_count: Those with every due token in time.
        missed_count: Those late, refused or failed.
        smooth_answer_sum: Answers, late ones discounted (`router.smooth`).
        span_s: Over how much time; None: since the routers started.
    """

    task: str
    slo_kind: str
    on_time_count: int
    missed_count: int
    smooth_answer_sum: float
    span_s: float | None = None

    @property
    def ended_count(self) -> int:
        """Requests that ended."""
        return self.on_time_count + self.missed_count

    @property
    def attained(self) -> float | None:
        """Share in time; None if nothing ended."""
        return self.on_time_count / self.ended_count if self.ended_count else None

    @property
    def smooth_share(self) -> float | None:
        """The same with late answers discounted, not zeroed; None if nothing ended."""
        return self.smooth_answer_sum / self.ended_count if self.ended_count else None

    @property
    def goodput_rps(self) -> float | None:
        """Answers in time per second; None if no time has passed."""
        return self.on_time_count / self.span_s if self.span_s else None

    @property
    def smooth_goodput_rps(self) -> float | None:
        """Answers per second, late ones discounted; None if no time has passed."""
        return self.smooth_answer_sum / self.span_s if self.span_s else None


def token_goodput_json(found: TokenGoodput) -> dict[str, Any]:
    """What JSON shows of it."""
    return {
        "task": found.task,
        "slo_kind": found.slo_kind,
        "on_time_count": found.on_time_count,
        "missed_count": found.missed_count,
        "attained": found.attained,
        "smooth_share": found.smooth_share,
        "goodput_rps": found.goodput_rps,
        "smooth_goodput_rps": found.smooth_goodput_rps,
        "span_s": found.span_s,
    }


def since_start(task: str, outcomes: Iterable[common_pb2.TokenOutcomes]) -> Iterable[TokenGoodput]:
    """Yields what a router tells of one task since its start; kinds not known here are left out."""
    for each in outcomes:
        kind = _KIND_NAMES.get(each.slo_kind)
        if kind is not None:
            counts = each.on_time_count, each.missed_count, each.smooth_answer_sum
            yield TokenGoodput(task, kind, *counts)


class TokenWindow:
    """Goodput over about the last minute, from states whose counts only grow.

    What a router had counted before it was first seen is left out. A router that starts anew is
    another one.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        """Starts without history."""
        self._window_s = window_s
        self._told: dict[tuple[str, int], Mapping[Key, _Sums]] = {}
        self._steps: collections.deque[tuple[float, dict[Key, _Sums]]] = collections.deque()
        self._looked_s: float | None = None

    def push(self, state: pb.SystemState, now_s: float) -> list[TokenGoodput]:
        """Takes the next state in.

        Args:
            state: The state.
            now_s: When it was published, seconds since 1970.

        Returns:
            A row per task and kind of which a router has counted requests since its start, or had
            any within the window.
        """
        if self._looked_s is None or not 0.0 <= now_s - self._looked_s <= _LONGEST_GAP_S:
            self._told.clear()
            self._steps.clear()
        begin_s = now_s if self._looked_s is None or not self._steps else self._looked_s
        if not self._steps or begin_s - self._steps[-1][0] >= _STEP_S:
            self._steps.append((begin_s, {}))
        self._looked_s = now_s
        grown = self._steps[-1][1]
        known: dict[Key, None] = {}
        told: dict[tuple[str, int], Mapping[Key, _Sums]] = {}
        for router in state.routers:
            process = router.router_id, router.epoch
            before = self._told.get(process)
            # The first report that a monitor hears of a router may not tell yet.
            now = _sums(router) if router.task_outcomes else before
            if now is None:
                continue
            told[process] = now
            known |= dict.fromkeys(now)
            if before is None:
                continue
            for key, sums in now.items():
                then = before.get(key, np.zeros(3))
                # Counts fall where a killed worker's last ones are gone.
                grown[key] = grown.get(key, np.zeros(3)) + np.maximum(0.0, sums - then)
        self._told = told
        while len(self._steps) > 1 and self._steps[0][0] < now_s - self._window_s:
            self._steps.popleft()
        # What a router that is gone had within the window is still of it.
        known |= dict.fromkeys(key for _, step in self._steps for key in step)
        span_s = now_s - self._steps[0][0]
        rows = []
        for task, kind in known:
            parts = [step[task, kind] for _, step in self._steps if (task, kind) in step]
            on_time, missed, smooth = np.sum(parts, axis=0).tolist() if parts else (0.0, 0.0, 0.0)
            rows.append(TokenGoodput(task, kind, round(on_time), round(missed), smooth, span_s))
        return rows


def _sums(router: pb.RouterLoad) -> dict[Key, _Sums]:
    return {
        (found.task, found.slo_kind): np.array(
            (found.on_time_count, found.missed_count, found.smooth_answer_sum), np.float64
        )
        for task in router.task_outcomes
        for found in since_start(task.task, task.token_outcomes)
    }
