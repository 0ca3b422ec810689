"""Keeps the children of an embedded mesh running, and ends every one of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Sequence

import psutil

from services.common.settings import SETTINGS_EXIT_CODE
from services.local.child import Child, ChildError, ChildSpec

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 10.0
HEALTHY_S = 30.0
"""A child that ran this long starts again without a growing delay."""
ALIVE_INTERVAL_S = 1.0
LOG_INTERVAL_S = 10.0
"""Time between two looks at the size of logs."""
DEAD_AFTER_MISSES = 5
"""Unanswered questions in a row after which a child that runs is taken for stuck."""


class Supervisor:
    """Starts children stage by stage, restarts those that end, stops all in reverse order."""

    def __init__(
        self,
        *,
        say: Callable[[str], None],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts nothing yet.

        Args:
            say: Gets one line for whatever the user should know.
            changed: Called whenever a child was started or given up.
            clock: Monotonic clock, in seconds.
        """
        self._say = heard_or_not(say)
        self._changed = changed
        self._clock = clock
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._bounding: asyncio.Task[None] | None = None
        self.children: dict[str, Child] = {}

    async def start(self, specs: Sequence[ChildSpec]) -> None:
        """Starts children, those of one stage together, and keeps them running.

        Raises:
            ChildError: One did not start; the others of this call keep running until ``stop``.
        """
        self._bounding = self._bounding or asyncio.create_task(self._bound_logs(), name="logs")
        staged = sorted(specs, key=lambda spec: spec.stage)
        for _, group in itertools.groupby(staged, key=lambda spec: spec.stage):
            children = [Child(spec) for spec in group]
            self.children |= {child.spec.name: child for child in children}
            results = await asyncio.gather(
                *(child.start() for child in children), return_exceptions=True
            )
            for child, result in zip(children, results, strict=True):
                if isinstance(result, BaseException):
                    raise result
                self._watch(child)
        self._changed()

    async def restart(self, name: str) -> None:
        """Stops a child gracefully and starts it again.

        Raises:
            ChildError: It did not start again.
        """
        await self._unwatch(name)
        old = self.children[name]
        await old.stop()
        child = Child(old.spec)
        child.start_count = old.start_count
        self.children[name] = child
        await child.start()
        self._watch(child)
        self._changed()

    async def stop(self, *, graceful: bool = True) -> None:
        """Ends every child, last stage first, then anything else this process left behind."""
        if self._bounding is not None:
            self._bounding.cancel()
            self._bounding = None
        for name in list(self._watchers):
            await self._unwatch(name)
        ordered = sorted(self.children.values(), key=lambda child: -child.spec.stage)
        for _, group in itertools.groupby(ordered, key=lambda child: child.spec.stage):
            await asyncio.gather(*(child.stop(graceful=graceful) for child in group))

    async def _bound_logs(self) -> None:
        """Keeps logs from growing for ever: an Envoy writes a line for each request."""
        while True:
            await asyncio.sleep(LOG_INTERVAL_S)
            for child in list(self.children.values()):
                await asyncio.to_thread(child.bound_log)

    def _watch(self, child: Child) -> None:
        name = child.spec.name
        self._watchers[name] = asyncio.create_task(self._keep(child), name=f"watch {name}")

    async def _unwatch(self, name: str) -> None:
        watcher = self._watchers.pop(name, None)
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait([watcher])

    async def _keep(self, child: Child) -> None:
        """Restarts a child whenever it ends, ever more slowly while it does not last."""
        backoff_s = FIRST_BACKOFF_S
        name = child.spec.name
        while True:
            code = await self._until_ended(child)
            if code == SETTINGS_EXIT_CODE:  # starting it again would not help
                self._say(f"{name} refuses its settings and stays down: {child.last_words()}")
                self._changed()
                return
            if self._clock() - child.ready_s > HEALTHY_S:
                backoff_s = FIRST_BACKOFF_S
            self._say(f"{name} ended ({_ending(code)}); starting it again in {backoff_s:g} s")
            await child.stop(graceful=False)
            await asyncio.sleep(backoff_s)
            backoff_s = min(LAST_BACKOFF_S, backoff_s * 2)
            try:
                await child.start()
                self._say(f"{name} is back")
            except ChildError as error:
                self._say(str(error))
                child.ready_s = self._clock()
            self._changed()

    async def _until_ended(self, child: Child) -> int:
        """Waits for a child's end, and brings it about if the child answers nothing any more."""
        is_alive = child.spec.is_alive
        if is_alive is None:
            return await child.wait()
        ended = asyncio.ensure_future(child.wait())
        misses = 0
        try:
            while not (await asyncio.wait([ended], timeout=ALIVE_INTERVAL_S))[0]:
                misses = 0 if await is_alive() else misses + 1
                if misses >= DEAD_AFTER_MISSES:
                    self._say(f"{child.spec.name} runs but answers nothing; ending it")
                    # Not by force at once: what is stuck may lie below it, and only it cleans up.
                    await child.stop()
            return await ended
        finally:
            ended.cancel()


def heard_or_not(say: Callable[[str], None]) -> Callable[[str], None]:
    """Returns a `say` that raises nothing where nobody reads any more what it writes.

    Ctrl-C ends the `tee` behind a command with it, and a closed terminal takes no text. What owns
    processes has to end them all the same.
    """

    def say_if_heard(text: str) -> None:
        with contextlib.suppress(OSError):
            say(text)

    return say_if_heard


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def kill_descendants() -> list[str]:
    """Kills whatever this process still has below it; returns the names, empty in a clean run."""
    left = psutil.Process(os.getpid()).children(recursive=True)
    names = []
    for process in left:
        try:
            names.append(f"{process.name()} ({process.pid})")
            process.kill()
        except psutil.Error:
            continue
    psutil.wait_procs(left, timeout=3.0)
    return names
