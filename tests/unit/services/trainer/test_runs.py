"""Training runs: one of a mode at a time, watched to their end, remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.log import get_logger
from services.trainer.model import Mode, RunState
from services.trainer.runs import Run, RunBook
from tests.fakes.clock import FakeClock
from tests.waiting import LIMIT_S


class Body:
    """What the runs of a test do: wait for `go`, then end or fail."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self, run: Run) -> None:
        """Runs."""
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        await run.update(step_count=7)


@pytest.fixture
async def body() -> Body:
    """What the runs do."""
    return Body()


@pytest.fixture
def book(body: Body) -> RunBook:
    """An empty book."""
    return RunBook(clock=FakeClock(), log=get_logger("test"), body_of=lambda mode: body)


def start(book: RunBook, mode: Mode = Mode.ONLINE) -> Run:
    """Starts a run."""
    return book.start(mode=mode, step_count=0, seed=0, promote=False)


async def ended(run: Run) -> Any:
    """Returns the last progress a watcher of the run sees."""
    async with asyncio.timeout(LIMIT_S):
        return [progress async for progress in run.watch()][-1]


async def test_a_run_is_watched_to_its_end(book: RunBook, body: Body) -> None:
    """The watch ends with the run and shows what it did."""
    run = start(book)
    body.go.set()
    last = await ended(run)
    assert (last.state, last.step_count) == (RunState.SUCCEEDED, 7)


async def test_a_run_that_fails_says_why_in_one_line(book: RunBook, body: Body) -> None:
    """The error's text is in the progress, without line breaks and bounded."""
    run = start(book)
    body.failure = ValueError("first\n  second " + "x" * 1000)
    body.go.set()
    last = await ended(run)
    assert last.state is RunState.FAILED
    assert last.error.startswith("first second x")
    assert len(last.error) == 500


async def test_runs_of_one_mode_exclude_each_other(book: RunBook, body: Body) -> None:
    """A second one is refused until the first is over; another mode is free."""
    first = start(book)
    with pytest.raises(FailedPreconditionError, match=first.progress.training_id):
        start(book)
    start(book, Mode.SIMULATED)
    body.go.set()
    await ended(first)
    start(book)


async def test_an_empty_id_is_the_newest_run(book: RunBook, body: Body) -> None:
    """Runs are found by id; one nobody started is not found."""
    with pytest.raises(NotFoundError):
        book.get("")
    first, second = start(book), start(book, Mode.SIMULATED)
    assert book.get("") is second
    assert book.get(first.progress.training_id) is first
    with pytest.raises(NotFoundError, match="training run 'x'"):
        book.get("x")


async def test_stopping_ends_every_run_as_stopped(book: RunBook) -> None:
    """A process that ends leaves no run behind."""
    run = start(book)
    await asyncio.sleep(0)
    await book.stop()
    assert run.progress.state is RunState.STOPPED
