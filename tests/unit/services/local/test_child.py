"""One child: started ready, tied to its parent, ended for sure."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import psutil
import pytest

from services.local import child as child_module
from services.local.child import Child, ChildError, ChildSpec
from tests.unit.services.local.children import SLEEPER, spec_of
from tests.waiting import until, until_sync

STUBBORN = (
    "import signal, subprocess, sys, time, pathlib;"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); time.sleep(600)"
)


async def test_a_child_starts_ready_and_stops(tmp_path: pathlib.Path) -> None:
    """After the stop no process is left."""
    child = Child(spec_of(tmp_path))
    await child.start()
    pid = child.pid
    assert pid is not None
    assert psutil.pid_exists(pid)
    await child.stop()
    assert not psutil.pid_exists(pid)
    await child.stop()


async def test_a_stubborn_child_and_its_own_children_are_killed(tmp_path: pathlib.Path) -> None:
    """SIGTERM is ignored, and a grandchild is there: both go."""
    child = Child(spec_of(tmp_path, STUBBORN))
    await child.start()
    grandchild = int((tmp_path / "one.ready").read_text())
    await child.stop()
    await until(lambda: not psutil.pid_exists(grandchild), "the grandchild ends")


async def test_what_a_stubborn_child_started_in_a_session_of_its_own_is_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a Triton that is stuck would keep the ports that the next one needs."""
    monkeypatch.setattr(child_module, "KILL_WAIT_S", 0.1)
    code = STUBBORN.replace("600)'])", "600)'], start_new_session=True)")
    assert code != STUBBORN
    child = Child(spec_of(tmp_path, code))
    await child.start()
    grandchild = int((tmp_path / "one.ready").read_text())
    await child.stop()
    await until(lambda: not psutil.pid_exists(grandchild), "the grandchild ends")


async def test_a_child_that_dies_while_starting_says_why(tmp_path: pathlib.Path) -> None:
    """The error carries the child's own last line."""
    child = Child(spec_of(tmp_path, "raise SystemExit('port 7410 is taken')"))
    with pytest.raises(ChildError, match="port 7410 is taken"):
        await child.start()


async def test_what_a_killed_child_left_says_nothing_of_the_next(tmp_path: pathlib.Path) -> None:
    """It is ready once it says so itself; one that ends before has not started."""
    spec = dataclasses.replace(spec_of(tmp_path), ready_file=tmp_path / "one.ready")
    child = Child(spec)
    await child.start()
    await child.stop(graceful=False)
    assert (tmp_path / "one.ready").exists()
    command = (sys.executable, "-c", "raise SystemExit('port 7410 is taken')")
    with pytest.raises(ChildError, match="port 7410 is taken"):
        await Child(dataclasses.replace(spec, command=command)).start()


async def test_a_child_that_is_never_ready_is_ended(tmp_path: pathlib.Path) -> None:
    """The time to ready is bounded and nothing is left."""
    spec = spec_of(tmp_path, "import time; time.sleep(600)")
    spec = ChildSpec(**{f: getattr(spec, f) for f in spec.__slots__} | {"ready_timeout_s": 0.3})
    child = Child(spec)
    with pytest.raises(ChildError, match="not ready after"):
        await child.start()
    assert not child.is_running


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: pathlib.Path) -> None:
    """Even SIGKILL of the supervisor leaves nothing behind."""
    code = f"""
import asyncio, pathlib, sys
from services.local import probes
from services.local.child import Child, ChildSpec
ready = pathlib.Path({str(tmp_path)!r}) / "ready"
async def main():
    child = Child(ChildSpec(name="c", command=(sys.executable, "-c", {SLEEPER!r}, str(ready)),
        is_ready=lambda: probes.file_exists(ready), log_path=ready.with_suffix(".log"), stage=0))
    await child.start()
    print(child.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until_sync(lambda: not psutil.pid_exists(pid), "the child ends with its supervisor")
