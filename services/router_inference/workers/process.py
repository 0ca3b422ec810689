"""A worker process as its parent sees it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

from services.router_inference.workers import exchange, frames

_METRICS_S = 1.0
_MOST_UNSENT_BYTES = 1024 * 1024


class WorkerProcess:
    """A forked process with its connection.

    Attributes:
        number: its place among the workers.
        pid: its process id.
        connection: the parent's end of the connection.
        ended: its exit code once it has ended, negative for a signal.
        is_serving: True from when it said so until it is asked to end or has ended.
        has_served: True from when it said that it serves.
        is_asked_to_end: True once it was asked to.
        metrics_page: the last metrics it told, Prometheus' text.
    """

    def __init__(self, number: int, main: Callable[[socket.socket], int]) -> None:
        """Forks; the new process runs `main` and ends with what that returns."""
        self.number = number
        self.is_serving = False
        self.is_asked_to_end = False
        self.metrics_page = ""
        self.has_served = False
        self._writer: asyncio.StreamWriter | None = None
        self._to_write = b""
        self._metrics: asyncio.Future[None] | None = None
        self._questions: dict[int, asyncio.Future[bytes | None]] = {}
        self._numbers = itertools.count(1)
        self.connection, other = socket.socketpair()
        self.pid = _fork(main, self.connection, other)
        other.close()
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._handle = os.pidfd_open(self.pid)
        loop.add_reader(self._handle, self._on_end)

    async def told(self) -> AsyncIterator[tuple[bytes, bytes]]:
        """Yields the frames it sends, until it is gone."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self.connection)
        frames.send(self._writer, self._to_write)
        try:
            while (told := await frames.read_frame(reader)) is not None:
                if told[0] == frames.SERVING and not self.is_asked_to_end:
                    self.is_serving = True
                    self.has_served = True
                yield told
        finally:
            self._writer.close()

    def on_metrics(self, page: str) -> None:
        """Takes in the metrics it told."""
        self.metrics_page = page
        if self._metrics is not None and not self._metrics.done():
            self._metrics.set_result(None)

    async def refresh_metrics(self) -> None:
        """Asks for its metrics; what it told before stays if it does not answer soon."""
        if self._metrics is None or self._metrics.done():
            self._metrics = asyncio.get_running_loop().create_future()
            self.send(frames.frame(frames.METRICS))
        answers: list[asyncio.Future[Any]] = [self._metrics, self.ended]
        await asyncio.wait(answers, timeout=_METRICS_S, return_when=asyncio.FIRST_COMPLETED)

    async def ask(self, body: bytes) -> bytes | None:
        """Passes a sibling's question on; returns the answer, None if there is none in time."""
        if self._writer is not None:
            unsent_bytes = self._writer.transport.get_write_buffer_size()
            if unsent_bytes > _MOST_UNSENT_BYTES:
                # It has stood still for long; what it would be asked may not fill the memory.
                return None
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._questions[number] = future
        self.send(frames.frame(frames.ASK, exchange.ask_bytes(number, body)))
        waits: list[asyncio.Future[Any]] = [future, self.ended]
        await asyncio.wait(waits, timeout=exchange.ANSWER_S, return_when=asyncio.FIRST_COMPLETED)
        del self._questions[number]
        return future.result() if future.done() else None

    def on_answer(self, payload: bytes) -> None:
        """Takes in its answer to a question."""
        number, answer = exchange.read_answer(payload)
        future = self._questions.get(number)
        if future is not None and not future.done():
            future.set_result(answer)

    def ask_to_end(self, how: bytes) -> None:
        """Asks it to end, by `frames.DRAIN` or `frames.LEAVE`."""
        self.is_asked_to_end = True
        self.is_serving = False
        self.send(frames.frame(how))

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def send(self, data: bytes) -> None:
        """Sends a frame, once there is a connection."""
        if self._writer is None:
            self._to_write += data
        else:
            frames.send(self._writer, data)

    def _on_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        os.close(self._handle)
        _, status = os.waitpid(self.pid, 0)
        self.is_serving = False
        self.ended.set_result(os.waitstatus_to_exitcode(status))


def _fork(
    main: Callable[[socket.socket], int], connection: socket.socket, other: socket.socket
) -> int:
    """Returns the new process's id; in the new process, does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    # A signal between the fork and the worker's own handlers would wake the parent's loop.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _live(main, connection, other)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def _live(
    main: Callable[[socket.socket], int], connection: socket.socket, other: socket.socket
) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the parent's affair
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        connection.close()
        code = main(other)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # Nothing of the parent's that was copied may run here: no callback, no finalizer.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
