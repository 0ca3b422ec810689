"""Wrong calls and wrong files in their short form; `make fuzz` is the long one."""

from __future__ import annotations

import importlib
import logging
import math
import random
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from tests import fuzz as rounds
from tests.conftest import RedisServer
from tests.fuzzing import files, http, rpcs, streams
from tests.fuzzing.meshes import SLOW, Mesh, Served, request_type, running_mesh
from tests.fuzzing.readers import Reader, readers
from tiercel.trainer.v1 import trainer_service_pb2

cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")  # it has no stubs
SEED = 20_261_129
CALLS = 100
INPUTS = 1_000


async def test_wrong_calls_break_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    """Every method of every service: a documented status, no traceback, nothing held."""
    async with running_mesh(tmp_path, redis_server.url) as mesh:
        report = await rpcs.fuzz(
            mesh, count=CALLS, seed=SEED, end_s=math.inf, slow=False, kept=tmp_path / "kept"
        )
        served = {m.full_name: m for each in mesh.services.values() for m in each.methods}
    assert report.problems == []
    called = {name for name, tally in report.tallies.items() if tally.count >= 2}
    assert {m.name for name, m in served.items() if name not in called} == SLOW
    assert {name.rpartition(".")[0] for name in called} >= {
        "inference.GRPCInferenceService",
        "tiercel.router_inference.v1.RouterInferenceService",
        "tiercel.load_monitor.v1.LoadMonitorService",
        "tiercel.trainer.v1.TrainerService",
        "envoy.service.ext_proc.v3.ExternalProcessor",
    }


def idle_mesh(*names: str) -> Mesh:
    """Returns services of the trainer's methods that nobody serves."""
    methods = list(trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"].methods)
    nobody: Any = None
    services = {
        name: Served(name, nobody, nobody, methods, AsyncMock(), lambda: 0) for name in names
    }
    return Mesh(services, seeds={each.full_name: [request_type(each)()] for each in methods})


async def test_services_share_the_time_and_none_is_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each has its part of what is left; one that had none is a problem."""
    now_s = 0.0

    async def batch(*_: Any) -> None:
        nonlocal now_s
        now_s += 1.0

    async def same(before: Any) -> Any:
        return before

    monkeypatch.setattr(rpcs, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(rpcs.Caller, "batch", batch)
    monkeypatch.setattr(rpcs, "_settled", AsyncMock())
    monkeypatch.setattr(rpcs, "_fewer", same)
    mesh = idle_mesh("a", "b")
    report = await rpcs.fuzz(mesh, count=10_000, seed=1, end_s=10.0, kept=tmp_path)
    assert report.sent == {"a": 1_000, "b": 1_000}
    assert report.problems == []
    late = await rpcs.fuzz(mesh, count=10_000, seed=1, end_s=10.0, kept=tmp_path)
    assert late.problems == [f"{name}: no call was sent: the time was up" for name in ("a", "b")]


def test_methods_that_start_processes_have_fewer_turns(tmp_path: Path) -> None:
    """A tenth of the others': a call of theirs takes as long as a hundred."""
    mesh = idle_mesh("a")
    caller = rpcs.Caller(mesh, 1, rpcs.Faults(), kept=tmp_path)
    turns = Counter(caller.turns(mesh.services["a"]))
    assert {name.rpartition(".")[2] for name, count in turns.items() if count == 1} == SLOW
    assert set(turns.values()) == {1, 10}


@pytest.mark.parametrize(("scripts", "code"), [(("true", "kill -9 $$"), 1), (("true", "true"), 0)])
async def test_a_process_that_was_killed_found_something(
    scripts: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit status is below zero; each service has a process, and they share the time."""
    asked: list[list[str]] = []

    def tied(command: list[str]) -> list[str]:
        asked.append(command)
        return ["sh", "-c", scripts[len(asked) - 1]]

    monkeypatch.setattr(rpcs, "tied_command", tied)
    given = Namespace(jobs=1, seconds=60.0, count=5, seed=1)
    assert await rpcs._run_all(["trainer", "load-monitor"], given) == code
    assert [command[command.index("--service") + 1] for command in asked] == [
        "^trainer$",
        r"^load\-monitor$",
    ]
    assert {command[command.index("--seconds") + 1] for command in asked} == {"30"}


@pytest.mark.parametrize(
    ("logger", "error", "is_found"),
    [
        ("grpc._cython.cygrpc", cygrpc.ExecuteBatchError("send"), False),
        ("grpc._cython.cygrpc", ValueError("in a serializer"), True),
        ("services.trainer", cygrpc.ExecuteBatchError("send"), True),
    ],
)
def test_an_answer_that_its_ended_call_cannot_take_is_no_fault(
    logger: str, error: Exception, is_found: bool
) -> None:
    """The library logs it, whatever we do; any other traceback is a finding."""
    with rpcs.Faults().listening() as faults:
        logging.getLogger(logger).error("raised", exc_info=error)
        assert bool(faults.taken()) is is_found


async def test_wrong_requests_over_http_break_nothing(tmp_path: Path) -> None:
    """Answered in OpenAI's form below status 500, no traceback, no connection held."""
    report = await http.run(tmp_path, count=3 * CALLS, seed=SEED, end_s=math.inf)
    assert report.problems == []
    assert {"200", "400", "404", "405", "408", "closed"} <= report.statuses.keys()


async def test_a_request_that_found_a_defect_is_sent_first_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept byte for byte, in its pieces; who does not keep sends it too."""
    sent: list[list[bytes]] = []

    async def failing(_: Any, pieces: list[bytes]) -> bytes:
        sent.append(pieces)
        return b"HTTP/1.1 500 Bug\r\n\r\n"

    monkeypatch.setattr(http, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(http, "send", failing)
    monkeypatch.setattr(http, "request_of", lambda _: [b"\xff\r\n", b""])
    for count, keeps in ((1, True), (0, False)):
        report = await http.run(tmp_path, count=count, seed=SEED, end_s=math.inf, keeps=keeps)
        assert ["status 500" in problem for problem in report.problems] == [True]
    assert sent == [[b"\xff\r\n", b""]] * 2
    assert len(http.kept()) == 1


async def test_wrong_answers_of_servers_break_nothing() -> None:
    """None that is not complete is taken for an answer, and every right one is."""
    report = await streams.fuzz(count=3 * CALLS, seed=SEED, end_s=math.inf)
    assert report.problems == []
    assert {"answered", "BAD_ANSWER", "UNAVAILABLE", "DEADLINE_EXCEEDED"} <= report.ends.keys()


def test_wrong_files_are_refused_by_their_readers_own_errors(tmp_path: Path) -> None:
    """Whatever reads a file or a stored record; none refuses everything."""
    found = readers(tmp_path)
    tallies: dict[str, files.Tally] = {}
    with files.quiet():
        for reader, count in zip(found, files.counts_of(found, INPUTS), strict=True):
            tallies[reader.name] = files.fuzz(
                reader,
                count=count,
                rng=random.Random(f"{SEED} {reader.name}"),
                end_s=math.inf,
                keeps=False,
            )
    assert [problem for tally in tallies.values() for problem in tally.problems] == []
    assert all(tally.accepted for tally in tallies.values())


@pytest.mark.parametrize("kind", ["KeyError", "slow"])
def test_what_breaks_a_reader_is_found_and_made_small(tmp_path: Path, kind: str) -> None:
    """A reader with a defect: the fuzzer names it, and the input that is kept is the least."""

    def read(data: bytes) -> None:
        if b"!" in data:
            if kind == "KeyError":
                raise KeyError(data)
            sum(range(5_000_000))

    reader = Reader("broken", [b"a right one"], lambda *_: b"x" * 40 + b"!" + b"y" * 40, read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "KEPT", tmp_path)
        patch.setattr(files, "MOST_CPU_S", 0.01)
        patch.setattr(files, "_MOST_SHRINKS", 100 if kind == "KeyError" else 2)
        tally = files.fuzz(reader, count=1, rng=random.Random(1), end_s=math.inf)
    (problem,) = tally.problems
    assert kind in problem
    (kept,) = (tmp_path / "broken").iterdir()
    assert kept.read_bytes() == b"!" or kind == "slow"


def test_a_reader_that_refuses_what_is_right_is_told() -> None:
    """Whatever else it accepts: nothing that is made of that input gets far."""

    def read(data: bytes) -> None:
        if data != b"another":
            raise ValueError

    reader = Reader("stale", [b"a right one", b"another"], lambda *_: b"x", read, (ValueError,))
    tally = files.fuzz(reader, count=1, rng=random.Random(1), end_s=math.inf, keeps=False)
    assert tally.problems == ["stale: a right input: refused by ValueError"]


@pytest.mark.parametrize(
    ("module", "name", "report"),
    [(http, "run", http.Report()), (streams, "fuzz", streams.Report())],
)
def test_a_run_that_sent_nothing_is_no_success(
    module: Any, name: str, report: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where the time was up before it began."""
    monkeypatch.setattr(module, name, AsyncMock(return_value=report))
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seconds", "0"])
    assert module.main() == 1


def test_rounds_that_draw_nothing_are_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no test of the given paths draws."""
    monkeypatch.setattr(rounds, "run_round", lambda *_: (0, 0, set(), 5))
    monkeypatch.setattr(rounds, "keep_examples", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["fuzz", "--rounds", "1"])
    assert rounds.main() == 1


def test_a_round_that_ends_in_an_error_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fixture that raises is an error and no failure; pytest's exit code is the same."""
    done = subprocess.CompletedProcess([], 1, "ERROR tests/a.py::test_b - RuntimeError\n", "")
    monkeypatch.setattr(rounds, "subprocess", SimpleNamespace(run=lambda *_, **__: done))
    monkeypatch.setattr(rounds, "keep_examples", lambda _: [])
    monkeypatch.setattr(sys, "argv", ["fuzz", "--rounds", "1"])
    assert rounds.main() == 1
    assert "failed: tests/a.py::test_b" in capsys.readouterr().out
