"""Worker processes: results, errors, progress, death, timeouts."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from services.common.log import get_logger
from services.trainer.worker import Worker, WorkerDiedError, WorkerError, _receive


class Job:
    """What the workers of these tests run."""

    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, value: int) -> int:
        """Keeps state between calls."""
        self.total += value
        return self.total

    def fail(self) -> None:
        """Raises."""
        raise LookupError("no such thing")

    def count(self, number: int, report: Callable[[int], None]) -> str:
        """Reports as it goes."""
        for i in range(number):
            report(i)
        return "done"

    def hang(self) -> None:
        """Never answers."""
        threading.Event().wait()

    def die(self) -> None:
        """Is killed."""
        os.kill(os.getpid(), signal.SIGKILL)

    def nice(self) -> int:
        """Returns its niceness."""
        return os.nice(0)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    """A worker with a job, closed afterwards."""
    made = Worker(Job, (10,), nice=5, log=get_logger("test"))
    yield made
    await made.close()


async def test_keeps_state_reports_and_survives_errors(worker: Worker) -> None:
    """Calls share one object; an error reaches the caller and leaves the worker alive."""
    seen: list[Any] = []
    assert await worker.call("add", 1, timeout_s=30.0) == 11
    pid = worker.pid
    with pytest.raises(WorkerError, match="no such thing") as caught:
        await worker.call("fail", timeout_s=30.0)
    assert caught.value.kind == "LookupError"
    assert await worker.call("count", 3, timeout_s=30.0, on_progress=seen.append) == "done"
    assert seen == [0, 1, 2]
    assert await worker.call("add", 1, timeout_s=30.0) == 12
    assert await worker.call("nice", timeout_s=30.0) >= os.nice(0)
    assert worker.pid == pid != os.getpid()


async def test_death_is_noticed_and_the_next_call_starts_afresh(worker: Worker) -> None:
    """A killed worker fails its call; the next one gets a new process with fresh memory."""
    await worker.call("add", 5, timeout_s=30.0)
    with pytest.raises(WorkerDiedError):
        await worker.call("die", timeout_s=30.0)
    assert await worker.call("add", 1, timeout_s=30.0) == 11
    assert worker.pid is not None
    process: Any = worker._process
    process.kill()
    process.join(5.0)
    with pytest.raises(WorkerDiedError, match="between two calls"):
        await worker.call("add", 1, timeout_s=30.0)
    assert await worker.call("add", 1, timeout_s=30.0) == 11


async def test_silence_ends_the_worker(worker: Worker) -> None:
    """A method that never answers is ended after its timeout."""
    await worker.call("add", 0, timeout_s=30.0)
    pid = worker.pid
    with pytest.raises(WorkerDiedError, match="in time"):
        await worker.call("hang", timeout_s=0.1)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_reads_nothing_is_ended_too(worker: Worker) -> None:
    """More than its pipe holds waits for it; neither the call nor the event loop does for ever."""
    await worker.call("add", 0, timeout_s=30.0)
    pid = worker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(WorkerDiedError, match="in time"):
        await worker.call("add", bytes(2**22), timeout_s=0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_close_ends_the_process(worker: Worker) -> None:
    """Nothing is left behind."""
    await worker.call("add", 0, timeout_s=30.0)
    pid = worker.pid
    await worker.close()
    assert worker.pid is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("turns", range(8))
async def test_a_cancellation_ends_a_call_that_is_just_sent(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """It is not lost in the turns of the loop in which the sending ends: a stop waits for it."""
    sent = asyncio.Event()

    def send(_: object) -> None:
        raise AssertionError("is called beside the loop")

    async def beside(function: Callable[..., Any], *_: Any) -> None:
        if function is send:
            await sent.wait()
        elif function is _receive:
            await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "to_thread", beside)
    worker = Worker(Job, (10,), nice=5, log=get_logger("test"))
    pipe: Any = SimpleNamespace(send=send, close=lambda: None)
    worker._pipe = pipe
    call = asyncio.create_task(worker.call("add", 1, timeout_s=30.0))
    await _some_turns(10)
    sent.set()
    await _some_turns(turns)
    call.cancel()
    await _some_turns(10)
    assert call.cancelled()


async def _some_turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)
