"""Jobs on worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.waiting import until_sync
from trainer.evaluation.jobs import Context, Runner

pytestmark = pytest.mark.timeout(120)


@dataclass(frozen=True)
class Waiting:
    """A job that ends at once or never."""

    forever: bool
    cost: float = 1.0

    def run(self, context: Context) -> None:
        """Ends, or waits for what nobody does."""
        if self.forever:
            threading.Event().wait()


def test_interrupted_run_does_not_wait_for_its_workers() -> None:
    """Ctrl-C ends a run whose jobs take minutes; its workers are ended, not waited for."""

    def interrupt(_text: str, done: float, _total: float) -> None:
        if done > 0.0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Runner(Context({}, {}), 2, interrupt) as runner:
        runner.run("waiting", [Waiting(False), Waiting(True)])


@dataclass(frozen=True)
class Noting:
    """A job that leaves its process id in a file and never ends."""

    folder: Path
    name: str
    cost: float = 1.0

    def run(self, context: Context) -> None:
        """Notes the process, and waits."""
        partial = self.folder / f"{self.name}.new"
        partial.write_text(str(os.getpid()))
        partial.rename(self.folder / f"{self.name}.pid")
        threading.Event().wait()


def _run_noting(folder: Path) -> None:
    with Runner(Context({}, {}), 2) as runner:
        runner.run("noting", [Noting(folder, "a"), Noting(folder, "b")])


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """A run that is killed leaves no worker behind, not even one in the middle of a job."""
    parent = multiprocessing.get_context("spawn").Process(target=_run_noting, args=(tmp_path,))
    parent.start()
    files = [tmp_path / "a.pid", tmp_path / "b.pid"]
    until_sync(lambda: all(file.exists() for file in files), "the workers start", 90.0)
    workers = [psutil.Process(int(file.read_text())) for file in files]
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    try:
        _, alive = psutil.wait_procs(workers, timeout=30.0)
        assert not alive
    finally:
        for worker in workers:
            if worker.is_running():
                worker.kill()
