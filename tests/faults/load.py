"""Load on the mesh, followed while it lasts: the load generator in the process of the harness."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.loadgen.records import FAILED, LATE, ON_TIME, STATUSES, RunRecords
from services.loadgen.rows import Row
from services.loadgen.run import LoadRun, Progress
from services.loadgen.spec import LoadSpec, parse_spec
from tests.faults.doors import Door, DoorError

_TICK_S = 0.1


class Load:
    """One run of the load generator; make it inside the event loop."""

    def __init__(self, door: Door | None = None, **fields: Any) -> None:
        """Takes the fields of a load spec, and where to ask; None: the routers themselves."""
        spec = parse_spec({"progress_interval_s": _TICK_S, **fields}, "faults")
        self._run = LoadRun(spec) if door is None else _DoorRun(spec, door)
        self.grace_s = spec.grace_s
        self._seen: deque[tuple[float, Progress]] = deque(maxlen=200)
        self._start_s = 0.0
        self.is_over = False
        self.records: RunRecords | None = None

    async def run(self) -> None:
        """Offers it all, or until `stop`; afterwards `records` are there."""
        try:
            self.records = await self._run.run(self._note)
        finally:
            self.is_over = True

    def stop(self) -> None:
        """Sends no more; what was sent is waited for."""
        self._run.stop()

    def is_steady(self, span_s: float, rate_rps: float) -> bool:
        """Says whether for so long every request that ended was in time, and enough did."""
        now_s = time.monotonic()
        then = next((p for seen_s, p in reversed(self._seen) if now_s - seen_s >= span_s), None)
        if then is None:
            return False
        now = self._seen[-1][1]
        bad = sum(
            getattr(now, name) - getattr(then, name)
            for name in ("late", "refused", "failed")
        )  # fmt: skip
        return not bad and now.on_time - then.on_time >= 0.5 * span_s * rate_rps

    @property
    def sent_s(self) -> NDArray[np.float64]:
        """When each request was meant to be sent, on the monotonic clock."""
        assert self.records is not None
        sent_s: NDArray[np.float64] = self.records.columns["intended_s"] + self._start_s
        return sent_s

    def _note(self, progress: Progress) -> None:
        now_s = time.monotonic()
        self._start_s = now_s - progress.elapsed_s
        self._seen.append((now_s, progress))


class _DoorRun(LoadRun):
    """The same load through another door, every second request of it as a stream."""

    def __init__(self, spec: LoadSpec, door: Door) -> None:
        super().__init__(spec)
        self._door = door

    async def _attempt(self, index: int, row: Row, intended_s: float, due_s: float) -> None:
        prompt, now_s = self._prompts[index], time.monotonic()
        row.attempts = 1
        try:
            async with asyncio.timeout(due_s + self._spec.grace_s - now_s):
                await self._door.ask(
                    prompt.text,
                    task=prompt.task,
                    deadline_s=due_s - self._spec.network_allowance_s - now_s,
                    stream=bool(index % 2),
                )
        except DoorError as error:
            row.status, row.reason = FAILED, error.reason
        except TimeoutError:
            row.status, row.reason = LATE, "TRANSPORT_DEADLINE_EXCEEDED"


def reasons(records: RunRecords) -> dict[str, int]:
    """Counts the requests that were not answered in time, by reason.

    One that was answered late, or that nobody gave a reason for, counts under its status.
    """
    counts: dict[str, int] = {}
    columns = records.columns
    for status, reason in zip(columns["status"], columns["reason"], strict=True):
        if status != ON_TIME:
            name = records.names["reason"][reason] if reason >= 0 else STATUSES[status].upper()
            counts[name] = counts.get(name, 0) + 1
    return counts


async def settle(check: Any, limit_s: float) -> bool:
    """Asks every tenth of a second until the answer is yes; says whether it came in time."""
    give_up_s = time.monotonic() + limit_s
    while not await check():
        if time.monotonic() > give_up_s:
            return False
        await asyncio.sleep(_TICK_S)
    return True
