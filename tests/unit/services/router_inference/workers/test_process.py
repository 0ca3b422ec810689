"""A forked worker as its parent sees it, with real forks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from services.router_inference.workers import frames
from services.router_inference.workers.process import WorkerProcess
from tests.waiting import until


def wait_until_killed(_: socket.socket) -> int:
    """A worker that says nothing."""
    signal.pause()
    return 0


async def test_exit_code_of_the_worker_is_told() -> None:
    """What `main` returns is how the process ends."""
    worker = WorkerProcess(1, lambda _: 7)
    assert await worker.ended == 7
    worker.connection.close()


async def test_exit_code_of_wrong_settings_is_told() -> None:
    """SystemExit ends the worker alone, with its code."""

    def main(_: socket.socket) -> int:
        raise SystemExit(2)

    worker = WorkerProcess(1, main)
    assert await worker.ended == 2
    worker.connection.close()


async def test_killed_worker_is_noticed_by_its_signal() -> None:
    """It counts as ended at once and serves no more."""
    worker = WorkerProcess(1, wait_until_killed)
    os.kill(worker.pid, signal.SIGKILL)
    assert await worker.ended == -signal.SIGKILL
    worker.kill()  # does nothing
    worker.connection.close()


async def test_frames_reach_the_parent_and_the_worker() -> None:
    """A worker serves once it says so, and ends when it is asked to."""

    def main(parent: socket.socket) -> int:
        parent.sendall(frames.frame(frames.SERVING))
        asked = parent.recv(5, socket.MSG_WAITALL)
        return 5 if asked == frames.frame(frames.LEAVE) else 1

    worker = WorkerProcess(1, main)
    told = worker.told()
    assert await anext(told) == (frames.SERVING, b"")
    before = worker.is_serving
    worker.ask_to_end(frames.LEAVE)
    assert (before, worker.is_serving) == (True, False)
    assert await worker.ended == 5
    assert [each async for each in told] == []


async def test_worker_that_does_not_answer_keeps_its_last_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scrape waits for it a bounded time."""
    monkeypatch.setattr("services.router_inference.workers.process._METRICS_S", 0.01)
    worker = WorkerProcess(1, wait_until_killed)
    worker.on_metrics("before")
    await worker.refresh_metrics()
    assert worker.metrics_page == "before"
    worker.kill()
    await worker.ended
    worker.connection.close()


async def test_worker_that_stands_still_is_not_asked_without_end() -> None:
    """What waits for it in the parent's memory is bounded."""
    worker = WorkerProcess(1, wait_until_killed)
    reading = asyncio.ensure_future(anext(worker.told(), None))
    try:
        await until(lambda: worker._writer is not None, "connected")
        worker.send(bytes(4 * 1024 * 1024))
        assert await worker.ask(b"") is None
        assert next(worker._numbers) == 1
    finally:
        worker.kill()
        await worker.ended
        await reading


async def test_worker_starts_with_ordinary_signals() -> None:
    """A signal to a worker never wakes its parent's loop, and ends the worker."""
    woken: list[int] = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, woken.append, 1)
    try:

        def main(parent: socket.socket) -> int:
            parent.sendall(frames.frame(frames.SERVING))
            return wait_until_killed(parent)

        worker = WorkerProcess(1, main)
        told = worker.told()
        await anext(told)
        os.kill(worker.pid, signal.SIGTERM)
        assert await worker.ended == -signal.SIGTERM
        await until(lambda: worker.ended.done(), "the loop has turned")
        assert woken == []
        assert [each async for each in told] == []
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
