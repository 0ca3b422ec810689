"""Jobs on worker processes."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

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
