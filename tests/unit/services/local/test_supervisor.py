"""The supervisor: what ends is started again, and everything stops in order."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal

import psutil
import pytest

from services.local import child as child_module
from services.local import supervisor
from services.local.child import Child
from services.local.supervisor import Supervisor
from tests.unit.services.local.children import SLEEPER, spec_of
from tests.waiting import until


async def test_the_supervisor_ends_a_child_that_answers_nothing(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that runs but is not alive is told to end, and started again."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(supervisor, "ALIVE_INTERVAL_S", 0.01)
    answers = [True] * 3 + [False] * supervisor.DEAD_AFTER_MISSES
    asked: list[bool] = []

    async def is_alive() -> bool:
        asked.append(answers[len(asked)] if len(asked) < len(answers) else True)
        return asked[-1]

    said: list[str] = []
    keeper = Supervisor(say=said.append)
    await keeper.start([dataclasses.replace(spec_of(tmp_path), is_alive=is_alive)])
    first = keeper.children["one"].pid
    await until(lambda: "one is back" in said, "the child is back")
    assert said == [
        "one runs but answers nothing; ending it",
        "one ended (signal 15); starting it again in 0.01 s",
        "one is back",
    ]
    assert keeper.children["one"].pid != first
    await keeper.stop()


async def test_a_child_comes_back_where_nobody_reads_what_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader of `tiercel up 2>&1 | head` has gone; the mesh has not."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)

    def say(_: str) -> None:
        raise BrokenPipeError

    keeper = Supervisor(say=say)
    await keeper.start([spec_of(tmp_path)])
    first = keeper.children["one"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: keeper.children["one"].start_count == 2, "the child is back")
    await keeper.stop()


async def test_the_supervisor_starts_an_ended_child_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed child comes back, with a message each time."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    said: list[str] = []
    keeper = Supervisor(say=said.append)
    await keeper.start([spec_of(tmp_path)])
    first = keeper.children["one"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(lambda: "one is back" in said, "the child is back")
    assert said[0].startswith("one ended (signal 9)")
    assert said[-1] == "one is back"
    assert keeper.children["one"].pid != first
    last = keeper.children["one"].pid
    await keeper.stop()
    assert last is not None
    assert not psutil.pid_exists(last)


async def test_a_child_with_wrong_settings_stays_down(tmp_path: pathlib.Path) -> None:
    """Exit code 2 is not retried."""
    said: list[str] = []
    keeper = Supervisor(say=said.append)
    code = SLEEPER.replace("time.sleep(600)", "time.sleep(0.2); print('bad key'); sys.exit(2)")
    await keeper.start([spec_of(tmp_path, code)])
    await until(lambda: said, "the supervisor says something")
    assert said == ["one refuses its settings and stays down: bad key"]
    await keeper.stop()


async def test_children_stop_in_the_reverse_order_of_their_stages(tmp_path: pathlib.Path) -> None:
    """What was started last goes first."""
    keeper = Supervisor(say=lambda text: None)
    specs = [spec_of(tmp_path, name=f"c{i}", stage=i) for i in range(3)]
    await keeper.start(specs)
    stopped: list[str] = []
    for child in keeper.children.values():
        original = child.stop

        async def record(*, graceful: bool = True, c: Child = child, o: object = original) -> None:
            stopped.append(c.spec.name)
            await o(graceful=graceful)  # type: ignore[operator]

        child.stop = record  # type: ignore[method-assign]
    await keeper.stop()
    assert stopped == ["c2", "c1", "c0"]


async def test_a_child_whose_log_cannot_be_opened_is_started_later(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that takes no file for a while does not end the watch over a child."""
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)
    logs = tmp_path / "logs"
    said: list[str] = []
    keeper = Supervisor(say=said.append)
    await keeper.start([dataclasses.replace(spec_of(tmp_path), log_path=logs / "one.log")])
    first = keeper.children["one"].pid
    assert first is not None
    (logs / "one.log").unlink()
    logs.rmdir()
    logs.write_text("no folder")
    os.kill(first, signal.SIGKILL)
    await until(lambda: any("cannot be started" in each for each in said), "a start fails")
    logs.unlink()
    await until(lambda: "one is back" in said, "the child is back")
    await keeper.stop()


async def test_a_log_that_grows_is_begun_anew(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child writes on, and what it had written is kept once."""
    monkeypatch.setattr(supervisor, "LOG_INTERVAL_S", 0.01)
    monkeypatch.setattr(child_module, "LOG_LIMIT_BYTES", 10_000)
    code = SLEEPER.replace(
        "time.sleep(600)",
        "[(print('x' * 99, flush=True), time.sleep(0.001)) for _ in range(600_000)]",
    )
    keeper = Supervisor(say=lambda text: None)
    await keeper.start([spec_of(tmp_path, code)])
    log, before = tmp_path / "one.log", tmp_path / "one.log.1"
    await until(before.exists, "the log is begun anew")
    began = before.stat().st_mtime_ns
    await until(lambda: before.stat().st_mtime_ns > began, "and anew")
    assert keeper.children["one"].start_count == 1
    await keeper.stop()
    assert log.stat().st_size < 1_000_000
    assert before.read_text().startswith("x" * 99)
