"""Parts of the replay that are to be dropped: asked for by calls, done by whoever has the state.

The state of learning belongs to one at a time, a run or nobody. So a call only asks, and its answer
has a limit: what nobody took up by then is withdrawn, and the caller told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.common.errors import DomainError, ResourceExhaustedError, UnavailableError
from services.trainer.turn import TurnLostError
from services.trainer.worker import WorkerDiedError, WorkerError

BEGIN_S = 30.0
"""Longest time until a drop is begun, seconds; a learner that starts takes some of it."""
MOST_WAITING = 8
"""Most drops that wait at a time."""
_RETRY_S = 5.0

Counts = tuple[int, int]
"""How many transitions were dropped, and how many are left."""


@dataclass(eq=False, slots=True)
class _Drop:
    """One that was asked for: its span in seconds since 1970, and its answer to be."""

    since_s: float
    until_s: float
    answer: asyncio.Future[Counts]
    has_begun: bool = False

    def fail(self, error: BaseException) -> None:
        """Answers with an error that a caller may see."""
        if not self.answer.done():
            self.answer.set_exception(_told(error))


class Drops:
    """The drops that wait."""

    def __init__(self) -> None:
        self._waiting: list[_Drop] = []

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, since_s: float, until_s: float, on_asked: Callable[[], None]) -> Counts:
        """Has a span of time dropped, and waits for it.

        One that was begun is done to its end, also if its caller leaves.

        Args:
            since_s: start of the span, seconds since 1970.
            until_s: end of the span, itself not in it.
            on_asked: called once it waits.

        Raises:
            ResourceExhaustedError: Too many wait.
            UnavailableError: Nothing was dropped: nobody began it in time, or it failed.
        """
        if len(self._waiting) >= MOST_WAITING:
            raise ResourceExhaustedError(
                "TOO_MANY_DROPS", f"{MOST_WAITING} at a time", str(len(self._waiting)), _RETRY_S
            )
        drop = _Drop(since_s, until_s, asyncio.get_running_loop().create_future())
        # Its caller may be gone by the time it fails.
        drop.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())
        self._waiting.append(drop)
        try:
            on_asked()
            await asyncio.wait([drop.answer], timeout=BEGIN_S)
            if not drop.has_begun:
                raise UnavailableError(
                    "LEARNER_BUSY",
                    f"nothing was dropped: the learner was busy for {BEGIN_S:g} s",
                    retry_after_s=_RETRY_S,
                )
            return await asyncio.shield(drop.answer)
        finally:
            if not drop.has_begun:
                self._waiting.remove(drop)

    async def carry_out(self, do: Callable[[float, float], Awaitable[Counts]]) -> None:
        """Does those that wait, one after another; `do` drops a span and saves.

        Raises:
            WorkerDiedError: The learner ended; the rest still waits.
            TurnLostError: It is another trainer's turn; the rest still waits.
        """
        while self._waiting:
            drop = self._waiting.pop(0)
            drop.has_begun = True
            try:
                counts = await do(drop.since_s, drop.until_s)
            except (WorkerError, DomainError) as error:
                drop.fail(error)
            except BaseException as error:
                drop.fail(error)
                raise
            else:
                if not drop.answer.done():
                    drop.answer.set_result(counts)

    def fail(self, error: BaseException) -> None:
        """Answers all that wait with an error."""
        while self._waiting:
            drop = self._waiting.pop(0)
            drop.has_begun = True
            drop.fail(error)


def _told(error: BaseException) -> Exception:
    """Returns what a caller is told."""
    if isinstance(error, TurnLostError):
        return UnavailableError(
            "LEARNING_ELSEWHERE", "another trainer learns at present; ask that one"
        )
    if isinstance(error, WorkerDiedError | WorkerError):
        return UnavailableError("LEARNER_FAILED", f"the learner failed: {error}")
    if isinstance(error, Exception):
        return error  # one of ours, or a bug
    return UnavailableError("LEARNER_STOPPED", "the learner was stopped meanwhile")
