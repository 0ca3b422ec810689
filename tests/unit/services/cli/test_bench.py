"""``tiercel bench``."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import psutil
import pytest

from services.bench.run import GROUPS
from services.cli.app import run
from tests.waiting import until_sync


def test_the_shortest_suite_measures_everything(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every metric of every group is in the report, or why it is not; no time is judged."""
    path = tmp_path / "bench.json"
    assert run(["bench", "--suite", "smoke", "--out", str(path)]) == 0
    report = json.loads(path.read_text())
    names = {name for group in GROUPS.values() for name in group}
    assert report["metrics"].keys() | report["missing"].keys() == names
    for each in report["metrics"].values():
        assert isinstance(each["within_budget"], bool) is (each["budget"] != "-")
        assert each["unit"]
    assert report["machine"]["cores"] >= 1
    assert "grpcio" in report["versions"]
    out = capsys.readouterr().out
    assert all(name in out for name in names)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--suite", "huge"], ["--suite", "smoke, quick, full"]),
        (["--only", "rout"], ["--only", "known:", "route", "hop"]),
        (["--out", "nowhere/bench.json"], ["--out", "no folder nowhere"]),
    ],
)
def test_bad_input_is_named_before_anything_is_measured(
    arguments: list[str],
    messages: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, one line."""
    monkeypatch.chdir(tmp_path)
    assert run(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(message in error for message in messages), error


def test_an_interrupt_leaves_no_process() -> None:
    """Ctrl-C in the middle ends the command and every server it has started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "services.cli", "bench", "--only", "generate"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    command = psutil.Process(process.pid)
    until_sync(lambda: len(command.children()) >= 4, "the servers start")
    children = command.children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60.0)
    assert process.returncode == 128 + signal.SIGINT
    assert b"Traceback" not in error
    psutil.wait_procs(children, timeout=10.0)
    assert not [child for child in children if child.is_running()]
