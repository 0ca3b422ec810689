"""Training runs: one of a mode at a time, watched to their end, remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.log import get_logger
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode, RunState
from services.trainer.runs import Run, RunBody, RunBook
from tests.fakes.clock import FakeClock, settle
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
def clock() -> FakeClock:
    """The clock of the book."""
    return FakeClock()


@pytest.fixture
def prometheus() -> CollectorRegistry:
    """Where the book counts."""
    return CollectorRegistry()


@pytest.fixture
def book(body: Body, clock: FakeClock, prometheus: CollectorRegistry) -> RunBook:
    """An empty book."""
    metrics = TrainerMetrics(prometheus)
    return RunBook(clock=clock, log=get_logger("test"), metrics=metrics, body_of=lambda mode: body)


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


async def test_a_kept_run_that_fails_is_followed_by_another(
    book: RunBook, body: Body, clock: FakeClock, prometheus: CollectorRegistry
) -> None:
    """After 5 s, and then after twice as long each time, up to 5 minutes; failures are counted."""

    def failures() -> float | None:
        name = "tiercel_trainer_training_failures_total"
        return prometheus.get_sample_value(name, {"mode": "online"})

    assert failures() == 0.0
    body.failure = ValueError("no")
    body.go.set()
    book.keep(Mode.ONLINE, promote=False)
    await settle()
    assert book.get("").progress.state is RunState.FAILED
    for before, wait_s in enumerate((5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0), 1):
        await clock.advance(wait_s - 0.2)
        assert failures() == before
        await clock.advance(0.2)
        assert failures() == before + 1
    body.go.clear()
    await clock.advance(301.0)
    run = book.get("")

    def states() -> tuple[RunState, RunState]:
        return run.progress.state, book.get("").progress.state

    assert states() == (RunState.RUNNING, RunState.RUNNING)
    await clock.advance(601.0)
    body.go.set()
    await settle()
    assert states()[0] is RunState.FAILED
    body.go.clear()
    await clock.advance(5.1)  # it went on for long, so that one comes soon again
    assert states() == (RunState.FAILED, RunState.RUNNING)
    await book.stop()
    assert book.get("").progress.state is RunState.STOPPED
    assert failures() == 10.0


async def test_a_kept_run_waits_for_one_that_somebody_started(book: RunBook, body: Body) -> None:
    """And does not keep the service from becoming ready."""
    own = start(book)
    book.keep(Mode.ONLINE, promote=True)
    await settle()
    assert book.get("") is own
    body.go.set()
    await ended(own)
    await settle()
    assert book.get("") is not own
    assert book.get("").promote


async def test_a_run_under_way_is_not_forgotten(body: Body) -> None:
    """However many of another mode come and go; so no second one of its mode starts beside it."""

    async def at_once(run: Run) -> None:
        """Ends."""

    bodies: dict[Mode, RunBody] = {Mode.ONLINE: body, Mode.SIMULATED: at_once}
    book = RunBook(
        clock=FakeClock(),
        log=get_logger("test"),
        metrics=TrainerMetrics(CollectorRegistry()),
        body_of=lambda mode: bodies[mode],
    )
    first = start(book)
    for _ in range(60):
        await ended(start(book, Mode.SIMULATED))
    assert book.get(first.progress.training_id) is first
    with pytest.raises(FailedPreconditionError):
        start(book)
    await book.stop()
