"""One child process of an embedded mesh: started tied to this process, watched, ended for sure."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Mapping

import psutil

from services.local.launch import tied_command

KILL_WAIT_S = 5.0
POLL_S = 0.05
LOG_LIMIT_BYTES = 64 * 1024 * 1024
"""Size from which on a log is begun anew."""


class ChildError(Exception):
    """A child that did not start; the text gives its own last words."""


@dataclasses.dataclass(frozen=True, slots=True)
class ChildSpec:
    """How to run a child.

    Attributes:
        name: Name in messages, unique in the mesh.
        command: Program (absolute path) and arguments.
        is_ready: Asked until it says yes; must return within a second or so.
        ready_file: File by which it says that it is ready, removed before each start: what a killed
            process left says nothing of the next. None: it has no such file.
        is_alive: Asked while it runs; one that says no for long is killed and started again. None:
            a process that runs is taken for alive.
        log_path: File its output is appended to; see `Child.bound_log`.
        stage: Children start stage by stage and stop in the reverse order.
        variables: Environment variables beside the inherited ones.
        cores: Processors it may use; empty means all.
        nice: Nice level, 0 or above.
        ready_timeout_s: Longest time from start to ready.
        stop_timeout_s: Time for a graceful end before it is killed.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], Awaitable[bool]]
    log_path: pathlib.Path
    stage: int
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] = ()
    nice: int = 0
    ready_file: pathlib.Path | None = None
    is_alive: Callable[[], Awaitable[bool]] | None = None
    ready_timeout_s: float = 60.0
    stop_timeout_s: float = 20.0


class Child:
    """A running (or ended) child."""

    def __init__(self, spec: ChildSpec) -> None:
        """Prepares nothing yet."""
        self.spec = spec
        self.start_count = 0
        self.ready_s = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._owner = os.getpid()

    @property
    def pid(self) -> int | None:
        """Process id, None before the first start."""
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            ChildError: It ended, or was not ready in time; nothing is left running.
        """
        began_s = time.monotonic()
        await self._spawn()
        try:
            await self._until_ready(began_s)
        except BaseException:
            await self.stop(graceful=False)
            raise
        self.ready_s = time.monotonic()

    async def wait(self) -> int:
        """Waits for the end; returns the exit code, negative for a signal."""
        assert self._process is not None, "wait() before start()"
        return await self._process.wait()

    async def stop(self, *, graceful: bool = True) -> None:
        """Ends the process and whatever is left of its group and below it; safe to call again.

        Does nothing in a process that was forked off the one that started it.
        """
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        if graceful and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.spec.stop_timeout_s):
                    await process.wait()
        below = _below(process.pid) if process.returncode is None else []
        # The child leads a session of its own: its group holds nothing but it and its children.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KILL_WAIT_S):
                await process.wait()
        if below:
            # What ends with its parent may clean up first; one that is stuck would keep its ports.
            _, left = await asyncio.to_thread(psutil.wait_procs, below, KILL_WAIT_S)
            for each in left:
                with contextlib.suppress(psutil.Error):
                    each.kill()

    def bound_log(self) -> None:
        """Begins the log anew where it has grown too large; what it held stays in FILE.1."""
        path = self.spec.log_path
        before = path.with_name(f"{path.name}.1")
        with contextlib.suppress(OSError):
            if path.stat().st_size <= LOG_LIMIT_BYTES:
                return
            try:
                shutil.copyfile(path, before)
            except OSError:  # a full disk: room counts for more
                before.unlink(missing_ok=True)
            os.truncate(path, 0)  # the child appends, so it goes on at the start

    def last_words(self) -> str:
        """Last line of its log that is not empty, for messages."""
        try:
            lines = self.spec.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    async def _spawn(self) -> None:
        spec = self.spec
        try:
            if spec.ready_file is not None:
                spec.ready_file.unlink(missing_ok=True)
            spec.log_path.parent.mkdir(parents=True, exist_ok=True)
            with spec.log_path.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *tied_command(spec.command, cores=spec.cores, nice=spec.nice),
                    env={**os.environ, **spec.variables},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            where = error.filename or spec.log_path
            raise ChildError(
                f"{spec.name} cannot be started: {where}: {error.strerror or error}"
            ) from None
        self.start_count += 1

    async def _until_ready(self, began_s: float) -> None:
        spec = self.spec
        while not await spec.is_ready():
            if not self.is_running:
                raise ChildError(f"{spec.name} ended while starting: {self._reason()}")
            if time.monotonic() - began_s > spec.ready_timeout_s:
                raise ChildError(
                    f"{spec.name} was not ready after {spec.ready_timeout_s:.0f} s"
                    f" (log: {spec.log_path})"
                )
            await asyncio.sleep(POLL_S)
        if not self.is_running:
            raise ChildError(f"{spec.name} ended while starting: {self._reason()}")

    def _reason(self) -> str:
        words = self.last_words()
        code = self._process.returncode if self._process else None
        return f"{words or f'exit code {code}'} (log: {self.spec.log_path})"


def _below(pid: int) -> list[psutil.Process]:
    """Returns what a process has below it, in other sessions too, as Triton has one of its own."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []
