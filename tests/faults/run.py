"""One run of a case: load, fault, recovery, and what is found wrong with it."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections import Counter

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from services.loadgen.records import ON_TIME
from tests.faults.books import Books, read_books, under_way
from tests.faults.case import MARGIN_S, SHARE_BAND, Case
from tests.faults.doors import EnvoyDoor
from tests.faults.experience import not_learned
from tests.faults.load import Load, reasons, settle
from tests.faults.mesh import FaultMesh

BEFORE_S = 1.0
STEADY_S = 1.0
"""A run ends once the mesh is whole and every request of so long was answered in time."""
WINDOW_S = 1.0
WHOLE_LIMIT_S = 90.0
IDLE_LIMIT_S = 6.0
WRITTEN_LIMIT_S = 5.0
_NOT_REACHED = ("TRANSPORT_", "NO_ANSWER", "NO_ROUTER")
"""How reasons begin that no router gave."""


class NotWholeError(Exception):
    """A mesh that is not whole before a run; the text says what it lacks."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one run of a case showed.

    Attributes:
        sent: Requests sent.
        on_time: Answered in time.
        late: Answered, but late.
        errors: Requests without an answer, by reason.
        recovery_s: From the end of the fault until service is as before; None: it never was.
        whole_s: From the end of the fault until the mesh is whole; None: it never was.
        longest_s: Longest time of a request beyond its deadline, seconds.
        lost: Acknowledged experience records that Redis does not have.
        restarts: Processes that were started again, and how often.
        complaints: What is not as expected.
    """

    sent: int
    on_time: int
    late: int
    errors: dict[str, int]
    recovery_s: float | None
    whole_s: float | None
    longest_s: float
    lost: int
    restarts: dict[str, int]
    complaints: list[str]


async def run_once(case: Case, mesh: FaultMesh, seed: int) -> Run:
    """Runs a case once.

    Raises:
        NotWholeError: The mesh is not whole before it.
    """
    await _wait_until_whole(mesh)
    before = await read_books(mesh)
    mesh.deadline_s = case.deadline_s
    mesh.door = mesh.open_door(case.door) if case.door else None
    mesh.take_loads()
    load = mesh.new_load(case.rate_rps, case.limit_s + 2 * WHOLE_LIMIT_S, seed=seed)
    sending = asyncio.create_task(load.run())
    complaints: list[str] = []
    try:
        await asyncio.sleep(BEFORE_S)
        began_s = time.monotonic()
        try:
            async with asyncio.timeout(case.limit_s):
                await case.fault(mesh)
        except TimeoutError:
            complaints.append(f"the fault was not over within {case.limit_s:g} s")
        except AssertionError as error:
            complaints.append(f"the fault: {error}")
        lifted_s = time.monotonic()
        whole_s, missing = await _recover(case, mesh, load, before, lifted_s)
    finally:
        load.stop()
        await sending
        if mesh.door is not None:
            await mesh.door.close()
    if whole_s is None:
        complaints.append(f"not whole again within {case.limit_s:g} s: {missing}")
        await _wait_until_whole(mesh)
    left = ""

    async def is_idle() -> bool:
        nonlocal left
        left = await under_way(mesh)
        return not left

    if not await settle(is_idle, IDLE_LIMIT_S):
        complaints.append(f"still under way {IDLE_LIMIT_S:g} s after the load: {left}")
    if case.check is not None:
        complaints += await case.check(mesh)
    after = await _settled_books(mesh, before)
    unlearned = await not_learned(mesh, before.last_id)
    if unlearned and "experience" not in case.expect.may_lose:
        complaints.append(f"{unlearned} acknowledged decisions are not in the trainer's replay")
    unpicked = mesh.door.picked.count(False) if isinstance(mesh.door, EnvoyDoor) else 0
    found = _Found(case, [load, *mesh.take_loads()], before, after, began_s, lifted_s, unpicked)
    return found.run(whole_s, complaints)


async def _wait_until_whole(mesh: FaultMesh) -> None:
    missing = ""

    async def is_whole() -> bool:
        nonlocal missing
        missing = await mesh.what_is_missing()
        return not missing

    if not await settle(is_whole, WHOLE_LIMIT_S):
        raise NotWholeError(missing)


async def _recover(
    case: Case, mesh: FaultMesh, load: Load, before: Books, lifted_s: float
) -> tuple[float | None, str]:
    """Waits until the mesh is whole and serves as before; returns when it was whole."""
    whole_s: float | None = None
    missing = ""
    while (now_s := time.monotonic()) < lifted_s + case.limit_s:
        if whole_s is None:
            again = Counter(mesh.starts()) - Counter(before.starts)
            late = Counter(case.expect.restarts) - again
            missing = f"{next(iter(late))} is to start again" if late else ""
            missing = missing or await mesh.what_is_missing()
            if not missing:
                whole_s = time.monotonic() - lifted_s
        elif load.is_steady(STEADY_S, case.rate_rps) and now_s - lifted_s > 1.5 * WINDOW_S:
            break
        await asyncio.sleep(0.1)
    return whole_s, missing


async def _settled_books(mesh: FaultMesh, before: Books) -> Books:
    """Reads the books once the routers have written all experience."""
    books = await read_books(mesh)

    async def is_written() -> bool:
        nonlocal books
        last, books = books, await read_books(mesh)
        return last.records == books.records and not _lost(before, books)

    try:
        await settle(is_written, WRITTEN_LIMIT_S)
    except grpc.aio.AioRpcError as error:
        raise NotWholeError(str(error.details())) from None
    return books


def _lost(before: Books, after: Books) -> int:
    """Returns how many acknowledged records are missing, by the routers that lived through it."""
    written = sum(
        now.written - before.routers[name].written
        for name, now in after.routers.items()
        if now.epoch == before.routers[name].epoch
    )
    return max(0, written - (after.records - before.records))


@dataclasses.dataclass(frozen=True)
class _Found:
    """Everything that a run left behind; `unpicked` are requests for which no router had chosen."""

    case: Case
    loads: list[Load]
    before: Books
    after: Books
    began_s: float
    lifted_s: float
    unpicked: int

    def run(self, whole_s: float | None, complaints: list[str]) -> Run:
        steady = self.loads[0]
        records = [load.records for load in self.loads if load.records is not None]
        status_N = np.concatenate([each.columns["status"] for each in records])
        errors = Counter[str]()
        for each in records:
            errors.update(reasons(each))
        late = errors.pop("LATE", 0)
        over_s = np.concatenate([e.columns["latency_s"] - e.deadline_s for e in records])
        recovery_s = recovery(
            steady.sent_s,
            records[0].columns["status"] == ON_TIME,
            began_s=self.began_s,
            lifted_s=self.lifted_s,
        )
        again = Counter(self.after.starts) - Counter(self.before.starts)
        run = Run(
            sent=len(status_N),
            on_time=int(np.sum(status_N == ON_TIME)),
            late=late,
            errors=dict(errors),
            recovery_s=recovery_s,
            whole_s=whole_s,
            longest_s=float(np.max(over_s)),
            lost=_lost(self.before, self.after),
            restarts=dict(again),
            complaints=complaints,
        )
        attempts = sum(int(each.columns["attempts"].sum()) for each in records)
        calm_N = records[0].columns["status"][steady.sent_s < self.began_s] == ON_TIME
        complaints += not_calm(calm_N) + self._of_requests(run)
        complaints += self._of_counts(run, attempts)
        complaints += self._of_state(run)
        return run

    def _of_requests(self, run: Run) -> list[str]:
        expect = self.case.expect
        found = []
        unnamed = {"FAILED", "REFUSED", "NO_END", ""} & run.errors.keys()
        if unnamed:
            found.append(f"errors without a reason, or without an end: {sorted(unnamed)}")
        unexpected = run.errors.keys() - expect.reasons - unnamed
        if unexpected:
            found.append(f"unexpected: {', '.join(f'{n} {run.errors[n]}' for n in unexpected)}")
        share = run.on_time / max(1, run.sent - run.errors.get("CANCELLED", 0))
        if share < expect.on_time_share:
            found.append(f"{share:.3f} in time, less than {expect.on_time_share:g}")
        limit_s = self.loads[0].grace_s + MARGIN_S
        if run.longest_s > limit_s:
            found.append(f"a request ended {run.longest_s:.2f} s after its deadline")
        if run.recovery_s is None:
            found.append("service was never as before")
        elif run.recovery_s > expect.recovery_s:
            found.append(f"as before after {run.recovery_s:.1f} s, not {expect.recovery_s:g} s")
        if run.whole_s is not None and run.whole_s > expect.whole_s:
            found.append(f"whole after {run.whole_s:.1f} s, not {expect.whole_s:g} s")
        return found

    def _of_counts(self, run: Run, attempts: int) -> list[str]:
        """Compares the routers' counts of requests with the client's."""
        counted, lived = 0, True
        for name, now in self.after.routers.items():
            then = self.before.routers[name]
            same = now.epoch == then.epoch
            lived &= same
            counted += now.requests - (then.requests if same else 0)
        if counted > attempts:
            return [f"routers counted {counted} requests of {attempts}"]
        lived &= "counts" not in self.case.expect.may_lose
        reached = not any(reason.startswith(_NOT_REACHED) for reason in run.errors)
        # One that its caller gives up at once may never have left.
        least = run.sent - run.errors.get("CANCELLED", 0) - self.unpicked
        if lived and reached and attempts == run.sent and counted < least:
            return [f"routers counted {counted} requests of {run.sent}"]
        return []

    def _of_state(self, run: Run) -> list[str]:
        expect = self.case.expect
        found = []
        if run.restarts != dict(expect.restarts):
            found.append(f"started again: {run.restarts}, expected {dict(expect.restarts)}")
        if run.lost and "experience" not in expect.may_lose:
            found.append(f"{run.lost} acknowledged records lost")
        for what in ("policies", "endpoints"):
            gone = getattr(self.before, what) - getattr(self.after, what)
            if gone and what not in expect.may_lose:
                found.append(f"{what} lost: {', '.join(sorted(gone))}")
        return found


def not_calm(good_N: NDArray[np.bool_]) -> list[str]:
    """Returns what is wrong with service before a fault, by what was in time of it.

    Most of it may have met the fault under way. But where nothing was served, service is as before
    at once.
    """
    return [] if good_N.any() else [f"none of {len(good_N)} was in time before the fault"]


def recovery(
    sent_s_N: NDArray[np.float64],
    good_N: NDArray[np.bool_],
    *,
    began_s: float,
    lifted_s: float,
) -> float | None:
    """Returns how long after the end of a fault service was as before, in seconds.

    Service is as before from the first moment on after which every second of requests (by when
    they were sent) has at least the share in time of those before the fault, less `SHARE_BAND`.

    Args:
        sent_s_N: When each request was sent, ascending.
        good_N: Whether it was answered in time.
        began_s: Start of the fault.
        lifted_s: Its end.

    Returns:
        0 if it never was otherwise after the end; None if it was not before the last second.
    """
    calm_N = sent_s_N < began_s
    need = (float(np.mean(good_N[calm_N])) if calm_N.any() else 1.0) - SHARE_BAND
    recovered_s = lifted_s
    last_s = float(sent_s_N[-1]) if len(sent_s_N) else -math.inf
    if last_s - lifted_s < WINDOW_S:
        return None
    for start_s in sent_s_N[sent_s_N >= lifted_s]:
        in_window_N = (sent_s_N >= start_s) & (sent_s_N < start_s + WINDOW_S)
        if start_s + WINDOW_S <= last_s and np.mean(good_N[in_window_N]) < need:
            recovered_s = float(sent_s_N[in_window_N & ~good_N][-1])
    tail_N = sent_s_N > recovered_s
    if last_s - recovered_s < WINDOW_S / 2 or np.mean(good_N[tail_N]) < need:
        return None
    return recovered_s - lifted_s
