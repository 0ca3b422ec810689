"""What is judged of a soak, at its end and while it lasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.soak.readings import grown

if TYPE_CHECKING:
    from tests.soak.crowd import Window
    from tests.soak.hour import Run

HELD_SHARE = 0.98
"""Share in time at which a rate is held: the run's is a part of one that was."""
P99_FACTOR = 1.5
"""How much longer than in the first sixth the 99th percentile may be in the last one."""
IN_TIME_BAND = 0.05
"""How much lower than in the first sixth the share in time may be in the last one."""


def verdicts(run: Run) -> list[str]:
    """Returns what a soaked mesh did that it may not; nothing if all is well."""
    bad = [f"ended after {run.past_s:.0f} s: {run.cut_short}"] if run.cut_short else []
    bad += growth(run)
    failed = sum(window.failed for window in run.windows)
    bad += [f"{failed} requests failed: {run.errors}"] if failed else []
    restarted = [name for name, count in run.starts.items() if count > 1]
    bad += [f"started again: {', '.join(restarted)}"] if restarted else []
    if run.connections_left:
        bad.append(f"{run.connections_left} connections to endpoints that had left")
    if not run.windows:
        return [*bad, "nothing was measured"]
    first, last = in_time(run)
    # A mesh that is as bad at its beginning is no better for that.
    least = max(first, HELD_SHARE if run.capacity_rps else 0.0) - IN_TIME_BAND
    # Written so that a share that is no number, of no request, is bad too.
    if not (last > 0.0 and last >= least):
        bad.append(f"share in time from {first:.3f} to {last:.3f}")
    first_ms, last_ms = p99_ms(run)
    if last_ms > P99_FACTOR * first_ms:
        bad.append(f"p99 from {first_ms:.0f} to {last_ms:.0f} ms")
    return bad


def growth(run: Run) -> list[str]:
    """Returns what is not flat, by process, quantity and numbers."""
    return [
        f"{name}: {quantity} from {early:g} to {late:g}"
        for name, quantity, early, late, is_flat in grown(run.held)
        if not is_flat
    ]


def p99_ms(run: Run) -> tuple[float, float]:
    """Returns the median of the windows' 99th percentiles in the first and the last sixth.

    That of a window of requests without any answer is infinite: nobody is quick who says nothing.
    """
    parts = _sixths(run.windows)
    middles = [sorted(map(_p99_ms, part))[len(part) // 2] for part in parts]
    return middles[0], middles[1]


def in_time(run: Run) -> tuple[float, float]:
    """Returns the share in time of what nobody gave up, in the first and the last sixth."""
    shares = [
        sum(window.on_time for window in part) / asked if asked else math.nan
        for part in _sixths(run.windows)
        for asked in [sum(window.sent - window.left for window in part)]
    ]
    return shares[0], shares[1]


def _sixths(windows: Sequence[Window]) -> tuple[Sequence[Window], Sequence[Window]]:
    sixth = max(1, len(windows) // 6)
    return windows[:sixth], windows[-sixth:]


def _p99_ms(window: Window) -> float:
    is_silent = window.sent > window.left and not window.p99_ms
    return math.inf if is_silent else window.p99_ms
