"""Independent pieces of an evaluation, run in this process or in several.

A job is a frozen value with a `run`; what it returns depends on itself and the context alone, and
results come back in the order of the jobs. So the number of workers changes nothing but the time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from trainer.simulation.setting import Setting
from trainer.simulation.simulate import PolicySpec
from trainer.traces.fit import TraceModel

Progress = Callable[[str, float, float], None]
"""Told what runs, the cost done and the cost of all, in simulated requests."""


@dataclass(frozen=True)
class Context:
    """What jobs refer to by name.

    Attributes:
        settings: settings by name; the nominal one under "".
        policies: policies by name.
        traces: fitted arrival traces by name.
    """

    settings: Mapping[str, Setting]
    policies: Mapping[str, PolicySpec]
    traces: Mapping[str, TraceModel] = field(default_factory=dict)


class Job(Protocol):
    """A piece of work."""

    @property
    def cost(self) -> float:
        """Simulated requests, about; for progress and for the order of work."""

    def run(self, context: Context) -> Any:
        """Does it."""


class Runner:
    """Runs jobs on a pool of spawned processes, or here if there is one worker."""

    def __init__(self, context: Context, workers: int, progress: Progress | None = None) -> None:
        """Takes the context every job sees and the number of workers (at least 1)."""
        self._context = context
        self._workers = workers
        self._progress = progress or (lambda _text, _done, _all: None)
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> Self:
        if self._workers > 1:
            self._pool = ProcessPoolExecutor(
                self._workers,
                multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._context,),
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            if kind is KeyboardInterrupt:
                # Workers ignore Ctrl-C, and nobody wants to wait for jobs of minutes.
                for worker in set(multiprocessing.active_children()) - self._others:
                    worker.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, text: str, jobs: Sequence[Job]) -> list[Any]:
        """Returns the jobs' results in their order; what a job raises ends the run."""
        total, done = sum(job.cost for job in jobs), 0.0
        self._progress(text, done, total)
        results: list[Any] = [None] * len(jobs)
        # Longest first: no worker is left alone with a long one at the end.
        order = sorted(range(len(jobs)), key=lambda i: -jobs[i].cost)
        if self._pool is None:
            for index in order:
                results[index] = jobs[index].run(self._context)
                done += jobs[index].cost
                self._progress(text, done, total)
            return results
        futures: dict[Future[Any], int] = {
            self._pool.submit(_run_here, jobs[index]): index for index in order
        }
        for future in as_completed(futures):
            index = futures[future]
            results[index] = future.result()
            done += jobs[index].cost
            self._progress(text, done, total)
        return results


_worker_context: Context | None = None
"""A worker process's own copy, set once at its start."""


def _start_worker(context: Context) -> None:
    global _worker_context
    # Ctrl-C reaches the whole group of processes; the parent decides what happens.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
    _worker_context = context


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: a killed one ends nobody, and jobs take minutes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_here(job: Job) -> Any:
    assert _worker_context is not None
    return job.run(_worker_context)
