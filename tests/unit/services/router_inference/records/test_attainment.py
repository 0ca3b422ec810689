"""What came of the targets over the last minute."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from services.router_inference.records.attainment import Attainment, Attainments


class Counted:
    """A router that counts, and its targets."""

    def __init__(self) -> None:
        self.on_time = self.missed = 0
        counts: Any = SimpleNamespace(
            tasks=["copa", "piqa"],
            by_task=self._by_task,
            latencies=self._latencies,
        )
        self.found = Attainments(counts, lambda: {"copa": (0.999, 0.99), "piqa": (0.9, 0.9)})

    def _by_task(self) -> Any:
        # By `TASK_ENDS`, then rewards: half of what missed was refused, half failed.
        half = self.missed / 2.0
        return np.array([[self.on_time, 0.0, half, half, 9.0, 0.5 * self.on_time], [0.0] * 6])

    def _latencies(self) -> Any:
        return np.array([[self.on_time, 0.0, self.missed], [0.0, 0.0, 0.0]])

    def run(self, start_s: int, end_s: int, on_time: int, missed: int) -> None:
        """Answers so much each second, and notes it twice as often."""
        for now_s in range(start_s, end_s):
            self.found.note(float(now_s))
            self.found.note(now_s + 0.5)
            self.on_time += on_time
            self.missed += missed


def test_counts_are_those_of_the_last_minute() -> None:
    """What was missed before is forgotten, and a task without requests has none."""
    counted = Counted()
    counted.run(0, 100, 0, 7)
    counted.run(100, 200, 10, 1)
    copa, piqa = counted.found.read()
    assert copa == Attainment("copa", 0.999, 0.99, 610, 61, 305.0)
    assert piqa == Attainment("piqa", 0.9, 0.9)
    latencies = counted.found.latencies()
    assert latencies["copa"].tolist() == [600.0, 0.0, 60.0]
    assert latencies["piqa"].tolist() == [0.0, 0.0, 0.0]


def test_a_router_that_has_just_begun_tells_what_it_has() -> None:
    """And a count that fell, since a worker died, tells nothing below zero."""
    counted = Counted()
    counted.run(0, 3, 10, 1)
    assert counted.found.read()[0][3:] == (30, 3, 15.0)
    counted.found.note(3.0)
    counted.on_time = counted.missed = 0
    assert counted.found.read()[0][3:] == (0, 0, 0.0)
