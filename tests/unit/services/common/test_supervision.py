"""Long tasks go on whatever they raise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import CollectorRegistry

from services.common.log import get_logger
from services.common.supervision import BROKEN_AFTER_S, STEADY_S, Supervisor
from tests.fakes.clock import FakeClock
from tests.waiting import LIMIT_S


class Task:
    """A task that raises what `error` holds, else runs for ever."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.start_count = 0

    async def run(self) -> None:
        """Raises or waits."""
        self.start_count += 1
        if self.error is not None:
            raise self.error
        await asyncio.Event().wait()


class Kept:
    """A task that a supervisor keeps."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.registry = CollectorRegistry()
        self.task = Task()
        self.supervisor = Supervisor(
            registry=self.registry, clock=self.clock, log=get_logger("test")
        )

    def value(self, name: str) -> float | None:
        """Returns a metric of the task."""
        return self.registry.get_sample_value(name, {"task": "job"})

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Keeps the task while the block runs."""
        keeping = asyncio.create_task(self.supervisor.keep("job", self.task.run))
        yield keeping
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping


@pytest.mark.parametrize(
    "make",
    [
        lambda: ValueError("cause"),
        lambda: OverflowError("cause"),
        lambda: MemoryError("cause"),
        lambda: ExceptionGroup("cause", [KeyError("x")]),
        lambda: asyncio.CancelledError("cause"),
    ],
)
async def test_a_failure_is_told_counted_and_tried_again(
    make: Callable[[], BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a task raises, a cancellation that nobody asked for included."""
    kept = Kept()
    kept.task.error = make()
    async with kept.running():
        await kept.clock.advance(0.01)
        kept.task.error = None
        await kept.clock.advance(1.0)
        assert kept.task.start_count == 2
        assert kept.value("tiercel_task_failures_total") == 1.0
        assert "cause" in caplog.text
        assert not kept.supervisor.broken


async def test_waits_grow_from_failure_to_failure() -> None:
    """A task that fails at once is not started a thousand times a second."""
    kept = Kept()
    kept.task.error = ValueError()
    async with kept.running():
        await kept.clock.advance(60.0)
        assert 10 <= kept.task.start_count <= 25


async def test_a_task_that_stays_broken_is_named_until_it_is_well() -> None:
    """One failure is no reason to send traffic elsewhere; failing on and on is."""
    kept = Kept()
    kept.task.error = ValueError()
    async with kept.running():
        await kept.clock.advance(BROKEN_AFTER_S / 2)
        assert not kept.supervisor.broken
        await kept.clock.advance(2.0 * BROKEN_AFTER_S)
        assert kept.supervisor.broken == {"job"}
        assert kept.value("tiercel_task_broken") == 1.0
        await asyncio.wait_for(kept.supervisor.changed(), LIMIT_S)
        kept.task.error = None
        await kept.clock.advance(6.0 + STEADY_S)
        assert not kept.supervisor.broken
        assert kept.value("tiercel_task_broken") == 0.0
        await asyncio.wait_for(kept.supervisor.changed(), LIMIT_S)


async def test_a_stop_is_no_failure() -> None:
    """Cancelling ends the task at once and counts nothing."""
    kept = Kept()
    async with kept.running() as keeping:
        await kept.clock.advance(0.01)
        keeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await keeping
    assert kept.value("tiercel_task_failures_total") is None


async def test_a_task_that_fails_as_it_is_stopped_is_not_started_again() -> None:
    """What fails in cleaning up is told; nobody would cancel a task that was started then."""
    kept = Kept()
    cleaned_up = asyncio.Event()

    async def fail_at_the_end() -> None:
        try:
            await kept.task.run()
        finally:
            cleaned_up.set()
            raise ConnectionError("cause")

    keeping = asyncio.create_task(kept.supervisor.keep("job", fail_at_the_end))
    await kept.clock.advance(0.01)
    keeping.cancel()
    await cleaned_up.wait()
    await kept.clock.advance(60.0)
    assert keeping.cancelled()
    assert kept.task.start_count == 1
    assert kept.value("tiercel_task_failures_total") == 1.0


async def test_a_task_that_returns_is_done() -> None:
    """It is not started again."""
    kept = Kept()

    async def once() -> None:
        return None

    await asyncio.wait_for(kept.supervisor.keep("job", once), LIMIT_S)
