"""The command line: what it prints, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter, serve


@pytest.fixture(autouse=True)
def no_mesh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No mesh of this machine is found by accident."""
    monkeypatch.setenv("TIERCEL_RUN_ROOT", str(tmp_path / "run"))
    monkeypatch.delenv("TIERCEL_MESH", raising=False)


@pytest.fixture
def router() -> Iterator[tuple[FakeRouter, str]]:
    """A fake router in a thread of its own, because commands block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    fake = FakeRouter(refuse=lambda spec: "TOO_LATE" if spec.prompt == "rev:no=" else "")
    server, address = asyncio.run_coroutine_threadsafe(serve(fake), loop).result()
    yield fake, address
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


def test_without_arguments_it_says_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    """The bare command is a question, not a mistake."""
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("up", "generate", "top", "policy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["up", "--routers", "0"], "--routers"),
        (["up", "--paced", "no-such-profile"], "--paced: no file"),
        (["up", "--profile", "missing.toml"], "--profile: no file"),
        (["up", "--name", "Not Good"], "mesh name"),
        (["generate", "hello", "--router", "127.0.0.1:1"], "--task"),
        (["generate", "rev:ab=", "--router", "nowhere"], "--router"),
        (["generate", "rev:ab=", "--deadline", "-1", "--router", "127.0.0.1:1"], "--deadline"),
        (
            ["generate", "rev:ab=", "--max-tokens", "99999999999", "--router", "127.0.0.1:1"],
            "--max-tokens",
        ),
        (["load", "--rate", "-1", "--router", "127.0.0.1:1"], "rate_rps"),
        (["load", "--router", "10.0.0.1:7410"], "loopback addresses only"),
        (["load", "--mix", "sort=x", "--router", "127.0.0.1:1"], "--mix"),
        (["load", "--phases", "calm", "--router", "127.0.0.1:1"], "--phases"),
        (["load", "--square", "1,2", "--router", "127.0.0.1:1"], "--square"),
        (["load", "--spec", "missing.toml"], "missing.toml"),
        (["policy", "use"], "POLICY"),
        (["endpoint", "add", "e", "nowhere", "--tier", "small"], "ADDRESS"),
        (["endpoint", "add", "e", "127.0.0.1:1"], "--tier"),
        (["endpoint", "list", "--monitor", "127.0.0.1:0"], "--monitor"),
        (["endpoint", "remove", "e", "--drain", "-1", "--monitor", "127.0.0.1:1"], "--drain"),
        (["policy", "rollback", "--trainer", "x"], "--trainer"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every mistake of the user is named, without a traceback."""
    assert run(arguments) == 2
    assert message.lower() in complaint(capsys).lower()


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "rev:ab="],
        ["generate", "rev:ab=", "--router", "127.0.0.1:1"],
        ["load", "--router", "127.0.0.1:1", "--duration", "1"],
        ["policy", "list", "--router", "127.0.0.1:1"],
        ["policy", "use", "greedy", "--trainer", "127.0.0.1:1"],
        ["policy", "rollback", "--trainer", "127.0.0.1:1"],
        ["endpoint", "list", "--monitor", "127.0.0.1:1"],
        ["top", "--monitor", "127.0.0.1:1"],
        ["status"],
        ["status", "--mesh", "other"],
    ],
)
def test_a_mesh_that_is_not_there_is_one_line_and_exit_code_1(
    arguments: list[str],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An unreachable part is named with what to do about it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("services.loadgen.run.CONNECT_TIMEOUT_S", 0.2)
    assert run(arguments) == 1
    assert "127.0.0.1:1" in (text := complaint(capsys)) or "tiercel up" in text


def test_status_says_what_each_unreachable_part_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Status prints what it knows before it fails."""
    assert run(["status", "--router", "127.0.0.1:1", "--json"]) == 1
    assert "error" in json.loads(capsys.readouterr().out)["routers"][0]


def test_generate_prints_the_answer_alone_on_standard_output(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The text can be piped; what is known about it goes to standard error."""
    fake, address = router
    assert run(["generate", "rev:ab=", "--router", address, "--deadline", "0.7"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "REV:AB=\n"
    assert "tier large" in captured.err
    assert fake.specs[0].task == "reverse"
    assert fake.specs[0].deadline.ToMilliseconds() == 700


def test_generate_streams_and_speaks_json(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both forms carry the same answer."""
    _, address = router
    assert run(["generate", "rev:ab=", "--router", address, "--stream"]) == 0
    assert capsys.readouterr().out == "REV:AB=\n"
    assert run(["generate", "rev:ab=", "--router", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "REV:AB="


def test_a_refused_request_is_one_line_with_its_reason(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A refusal is not a traceback."""
    assert run(["generate", "rev:no=", "--router", router[1]]) == 1
    assert "TOO_LATE" in complaint(capsys)


def test_policies_are_listed_and_switched_on_the_routers_named(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a trainer each router is asked itself; an unknown name is bad input."""
    fake, address = router
    assert run(["policy", "use", "price", "--router", address]) == 0
    assert fake.policy == "price"
    capsys.readouterr()
    assert run(["policy", "list", "--router", address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["routers"][address]["policy"] == "price"
    assert run(["policy", "use", "nonsense", "--router", address]) == 2
    assert "greedy" in complaint(capsys)


def test_load_accounts_for_everything(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """The command runs the generator as a process of its own and sums its records up."""
    out = tmp_path / "run.npz"
    arguments = ["load", "--router", router[1], "--phases", "calm:0.3@40,burst:0.3@100"]
    assert run([*arguments, "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["total"]["offered"] == summary["total"]["on_time"] > 10
    assert set(summary["phases"]) == {"calm", "burst"}
    assert out.exists()


def test_a_bug_is_one_line_and_keeps_its_traceback_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even what nobody expected does not spill a traceback over the user."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("services.cli.status.resolve", broken)
    assert run(["status"]) == 1
    line = complaint(capsys)
    assert "internal error: RuntimeError: two lines" in line
    path = pathlib.Path(line.rpartition("details: ")[2].rstrip(")\n"))
    assert "Traceback" in path.read_text()
    path.unlink()
