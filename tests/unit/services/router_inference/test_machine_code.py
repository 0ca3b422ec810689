"""The compiled decision: kept, found again, made once by many, and done without."""

from __future__ import annotations

import logging
import sys
import threading
from functools import cache
from pathlib import Path

import psutil
import pytest

from router import entry
from router.bound import bind_plain
from router.compiled import cache_folder
from services.common.log import get_logger
from services.router_inference.machine_code import (
    Compile,
    CompilerError,
    MachineCode,
    obtain,
    run_compiler,
)
from tests.unit.router.machine import compiled_bind
from tests.waiting import until_sync

LOG = get_logger("tests")


@cache
def code() -> bytes:
    """Returns real machine code, from the folder where this version's is kept."""
    compiled_bind()
    return (cache_folder() / f"decision-{entry.code_name()}.bin").read_bytes()


class Compiler:
    """Stands for the compiler: has its result ready."""

    def __init__(self, result: bytes = b"") -> None:
        """Gives real code unless told otherwise."""
        self.result = result or code()
        self.runs = 0

    def __call__(self, path: Path, patience_s: float) -> None:
        """Writes the result."""
        self.runs += 1
        path.write_bytes(self.result)


def get(folder: Path, compiler: Compile, patience_s: float = 60.0) -> MachineCode:
    """Obtains the decision."""
    return obtain(LOG, folder, compiler, patience_s)


def test_a_missing_folder_is_made_and_the_code_kept(tmp_path: Path) -> None:
    """The second start compiles nothing, and nothing else is left in the folder."""
    folder, compiler = tmp_path / "not" / "there", Compiler()
    for _ in range(2):
        found = get(folder, compiler)
        assert not found.problem
        assert found.bind is not bind_plain
    assert compiler.runs == 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".lock"]


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The code is compiled and used, and the log says that it is not kept."""
    (tmp_path / "file").write_text("no folder")
    compiler = Compiler()
    with caplog.at_level(logging.WARNING):
        found = get(tmp_path / "file" / "numba", compiler)
    assert found.bind is not bind_plain
    assert "compiled_code_not_kept" in caplog.text


def test_code_is_read_where_nothing_can_be_written(tmp_path: Path) -> None:
    """An image brings its code along in a folder that is closed."""
    get(tmp_path, Compiler())
    (tmp_path / "decision.lock").unlink()
    tmp_path.chmod(0o555)
    try:
        compiler = Compiler()
        assert not get(tmp_path, compiler).problem
        assert compiler.runs == 0
        assert not (tmp_path / "decision.lock").exists()
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_code_is_made_anew(tmp_path: Path, damage: str) -> None:
    """It is never run, and replaced."""
    get(tmp_path, Compiler())
    (path,) = tmp_path.glob("*.bin")
    half = len(code()) // 2
    flipped = code()[:half] + bytes([code()[half] ^ 1]) + code()[half + 1 :]
    path.write_bytes({"cut": code()[:half], "flipped": flipped, "empty": b""}[damage])
    compiler = Compiler()
    assert not get(tmp_path, compiler).problem
    assert compiler.runs == 1
    assert path.read_bytes() == code()


def test_of_many_that_start_together_one_compiles(tmp_path: Path) -> None:
    """The others wait for it and read what it made."""
    compiler, started, may_end = Compiler(), threading.Event(), threading.Event()

    def slow(path: Path, patience_s: float) -> None:
        started.set()
        may_end.wait(60.0)
        compiler(path, patience_s)

    found: list[MachineCode] = []
    threads = [threading.Thread(target=lambda: found.append(get(tmp_path, slow))) for _ in range(3)]
    for thread in threads:
        thread.start()
    started.wait(60.0)
    may_end.set()
    for thread in threads:
        thread.join()
    assert [each.problem for each in found] == ["", "", ""]
    assert compiler.runs == 1


def test_who_waits_too_long_for_another_decides_in_plain_python(tmp_path: Path) -> None:
    """A start is not held up for ever by a process that hangs."""
    problems: list[str] = []

    def holding(path: Path, patience_s: float) -> None:
        problems.append(get(tmp_path, Compiler(), patience_s=0.0).problem)
        Compiler()(path, patience_s)

    assert not get(tmp_path, holding).problem
    assert "compiles" in problems[0]


def test_without_a_compiler_decisions_are_made_in_plain_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where numba is not installed the start goes on and says so."""
    monkeypatch.setitem(sys.modules, "router.entry", None)
    found = get(tmp_path, Compiler())
    assert found.bind is bind_plain
    assert "router.entry" in found.problem


def test_a_compiler_that_fails_is_told(tmp_path: Path) -> None:
    """What it said last is the problem; the next start tries again."""

    def failing(path: Path, patience_s: float) -> None:
        raise CompilerError("the compiler failed (1): no memory")

    assert "no memory" in get(tmp_path, failing).problem
    assert not get(tmp_path, Compiler()).problem


def test_code_that_decides_otherwise_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it serves, a router compares one decision of each kind with plain Python."""
    monkeypatch.setattr(entry, "load", lambda code: lambda board, rule: lambda *asked: 3)
    found = get(tmp_path, Compiler())
    assert found.bind is bind_plain
    assert "differently" in found.problem


def test_the_compilers_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child process that compiles ends with a status and a last line."""
    monkeypatch.setattr(entry, "ENVIRONMENT", {"NUMBA_CPU_NAME": "none-such"})
    with pytest.raises(CompilerError, match="ENVIRONMENT"):
        run_compiler(tmp_path / "code", 60.0)


def test_the_compiler_ends_with_the_process_that_waits_for_it(tmp_path: Path) -> None:
    """A router that is killed while it starts leaves nothing running behind."""
    program = (
        "import pathlib, sys\n"
        "from services.router_inference.machine_code import run_compiler\n"
        "run_compiler(pathlib.Path(sys.argv[1]), 60.0)\n"
    )
    starting = psutil.Popen([sys.executable, "-c", program, str(tmp_path / "code")])
    until_sync(lambda: bool(starting.children()), "the compiler runs")
    (compiler,) = starting.children()
    starting.kill()
    starting.wait()
    until_sync(lambda: not compiler.is_running() or compiler.status() == "zombie", "it ended")
