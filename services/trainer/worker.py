"""Worker processes: learning and simulation run beside the event loop, at low priority.

A worker holds one object and runs its methods one after another, as asked over a pipe. It ends with
its parent: a closed pipe is the end. Only objects of our own process pass through the pipe.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from services.common.log import Logger

_POLL_S = 0.2
_CLOSE_S = 2.0

Progress = Callable[[Any], None]


class WorkerDiedError(Exception):
    """The worker process ended, or did not answer in time and was ended; its memory is lost."""


class WorkerError(Exception):
    """A method of the worker's object failed; the worker lives on.

    Args:
        kind: Class name of the error.
        message: Its text.
        reason: Its `reason`, empty if it has none.
    """

    def __init__(self, kind: str, message: str, reason: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message
        self.reason = reason


class Worker:
    """One worker process; started by the first call."""

    def __init__(
        self, factory: Callable[..., object], arguments: tuple[Any, ...], *, nice: int, log: Logger
    ) -> None:
        """Will make `factory(*arguments)` in a process of its own with niceness `nice`."""
        self._factory = factory
        self._arguments = arguments
        self._nice = nice
        self._log = log
        self._lock = asyncio.Lock()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    @property
    def pid(self) -> int | None:
        """Process id, None while there is none."""
        return None if self._process is None else self._process.pid

    async def call(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float,
        on_progress: Progress | None = None,
    ) -> Any:
        """Runs a method and returns its result.

        Args:
            method: Name of the method of the worker's object.
            arguments: Its arguments; must be picklable.
            timeout_s: Longest time for it, the start of the process included, in seconds.
            on_progress: Called in the event loop with what the method reports; such a method
                gets a function to report with as its last argument.

        Raises:
            WorkerDiedError: The process is gone or was ended after the timeout.
            WorkerError: The method raised.
        """
        async with self._lock:
            await asyncio.to_thread(self._start)
            loop = asyncio.get_running_loop()
            end_s = loop.time() + timeout_s
            try:
                assert self._pipe is not None
                message = method, arguments, on_progress is not None
                # A process that starts, or stands still, reads nothing: it waits beside the loop.
                async with asyncio.timeout(timeout_s):
                    await asyncio.to_thread(self._pipe.send, message)
                while True:
                    answer = await asyncio.to_thread(_receive, self._pipe)
                    if answer is not None:
                        kind, value = answer
                        if kind == "progress" and on_progress is not None:
                            on_progress(value)
                        elif kind == "result":
                            return value
                        elif kind == "error":
                            raise WorkerError(*value)
                    if loop.time() > end_s:
                        raise TimeoutError
            except (EOFError, OSError, TimeoutError) as error:
                pid = self.pid
                self._end()
                what = "did not answer in time" if isinstance(error, TimeoutError) else "ended"
                raise WorkerDiedError(f"worker process {pid} {what}") from None
            except asyncio.CancelledError:
                # Its answer would come in place of the next call's.
                self._end()
                raise

    async def close(self) -> None:
        """Ends the process; never raises."""
        await asyncio.to_thread(self._end)

    def _start(self) -> None:
        if self._process is not None:
            if self._process.is_alive():
                return
            # Whoever calls must learn that what the worker knew is lost.
            pid = self.pid
            self._end()
            raise WorkerDiedError(f"worker process {pid} ended between two calls")
        context = multiprocessing.get_context("spawn")
        pipe, child = context.Pipe()
        process = context.Process(
            target=_main, args=(child, self._factory, self._arguments, self._nice), daemon=True
        )
        process.start()
        child.close()
        # Only now: whoever waits for this may be cancelled, and the next one may end what is here.
        self._pipe, self._process = pipe, process
        self._log.debug("worker_started", pid=process.pid, nice=self._nice)

    def _end(self) -> None:
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.terminate()
            process.join(_CLOSE_S)
            if process.is_alive():
                process.kill()
                process.join(_CLOSE_S)


def _receive(pipe: Connection) -> tuple[str, Any] | None:
    """Returns the next message, None if none came for a while."""
    return pipe.recv() if pipe.poll(_POLL_S) else None


def _main(
    pipe: Connection, factory: Callable[..., object], arguments: tuple[Any, ...], nice: int
) -> None:
    """Runs in the worker process until the pipe closes."""
    # Ctrl-C and a closed terminal reach the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(OSError):
        os.nice(nice)
    target: object | None = None
    with suppress(EOFError, OSError, BrokenPipeError):
        while True:
            method, values, reports = pipe.recv()
            try:
                if target is None:
                    target = factory(*arguments)
                more = (lambda value: pipe.send(("progress", value)),) if reports else ()
                result = getattr(target, method)(*values, *more)
            except Exception as error:  # sent to the caller whatever it is
                reason = getattr(error, "reason", "")
                pipe.send(("error", (type(error).__name__, str(error), str(reason))))
            else:
                pipe.send(("result", result))
