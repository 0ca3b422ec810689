"""``tiercel load``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import pytest

from services.cli.app import run
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.said import complaint
from tests.waiting import LIMIT_S, until_sync


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


def test_prompts_have_the_lengths_that_were_asked_for(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Prompts of so many words, each four bytes with its space; answers limited as drawn."""
    arguments = ["load", "--router", router[1], "--rate", "60", "--duration", "0.3"]
    lengths = ["--prompt-tokens", "124", "--output-tokens", "drawn", "--mix", "piqa"]
    lengths += ["--deadline", "0.5"]
    assert run([*arguments, *lengths, "--out", str(tmp_path / "run.npz")]) == 0
    specs = router[0].specs
    assert {len(spec.prompt.split()) for spec in specs} == {124}
    assert {len(spec.prompt) for spec in specs} == {4 * 124 - 1}
    limits = {spec.max_output_tokens for spec in specs}
    assert limits <= set(range(4, 13))
    assert len(limits) > 1


def test_each_task_has_its_own_deadline(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """As the router says; answers are judged by it. A deadline that is asked for is everybody's."""
    fake, address = router
    fake.deadlines_s, fake.delay_s = {"quick": 0.05, "slow": 5.0}, 0.2
    line = ["load", "--router", address, "--rate", "60", "--duration", "0.3", "--json"]
    assert run([*line, "--out", str(tmp_path / "run.npz")]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["deadline_s"] == {"quick": 0.05, "slow": 5.0}
    total = summary["total"]
    assert total["late"] == sum(spec.task == "quick" for spec in fake.specs) > 0
    assert total["on_time"] == sum(spec.task == "slow" for spec in fake.specs) > 0
    assert run([*line, "--deadline", "4", "--out", str(tmp_path / "run.npz")]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["late"] == 0


def test_any_router_says_the_tasks(router: tuple[FakeRouter, str], tmp_path: Any) -> None:
    """One that is gone is skipped, as it is by the requests."""
    line = ["load", "--router", "127.0.0.1:1", "--router", router[1], "--rate", "60", "--json"]
    assert run([*line, "--duration", "0.3", "--out", str(tmp_path / "run.npz")]) == 0
    assert {spec.task for spec in router[0].specs} == {"sort", "reverse"}


def test_a_mix_of_tasks_that_the_mesh_does_not_have_is_refused(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is sent, with what it has."""
    assert run(["load", "--router", router[1], "--mix", "sort,chat"]) == 2
    assert "no task 'chat'; it has sort, reverse" in capsys.readouterr().err
    assert router[0].specs == []


def test_priorities_are_shown_apart(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Each class with its own counts; an unknown one is refused before anything is sent."""
    line = ["load", "--router", router[1], "--rate", "100", "--duration", "0.3"]
    assert run([*line, "--priority", "urgent=1"]) == 2
    assert "--priority: 'urgent' is none of high, normal, low" in capsys.readouterr().err
    line += ["--out", str(tmp_path / "run.npz")]
    assert run([*line, "--priority", "high=1,low=1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["priorities"]
    assert found.keys() == {"high", "low"}
    assert min(each["on_time"] for each in found.values()) > 0


def test_a_run_in_which_every_request_failed_has_failed(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """The summary stands, and the exit code is 1."""
    router[0].lacks = lambda spec: "TASK_NOT_FOUND"
    line = ["load", "--router", router[1], "--mix", "chat", "--deadline", "0.5", "--json"]
    lengths = ["--rate", "50", "--duration", "0.2", "--out", str(tmp_path / "run.npz")]
    assert run([*line, *lengths]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["total"]["reasons"].keys() == {"TASK_NOT_FOUND"}
    assert "requests failed: TASK_NOT_FOUND" in said.err


def test_into_a_file_the_run_says_how_far_it_is(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """On standard error, with what became of the requests: standard output is JSON."""
    line = ["load", "--router", router[1], "--rate", "60", "--duration", "0.3", "--json"]
    assert run([*line, "--out", str(tmp_path / "run.npz")]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["total"]["offered"] > 0
    assert "load 100%  on_time " in said.err


def test_a_run_without_a_request_is_no_success(
    router: tuple[FakeRouter, str], capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    """Nothing was due, so nothing was found out."""
    line = ["load", "--router", router[1], "--rate", "0", "--duration", "0.2", "--json"]
    assert run([*line, "--out", str(tmp_path / "run.npz")]) == 1
    said = capsys.readouterr()
    assert (found := json.loads(said.out))["total"]["offered"] == 0
    assert (found["planned"], found["interrupted"]) == (0, False)
    assert "no request was due" in said.err


def test_ctrl_c_keeps_the_summary(router: tuple[FakeRouter, str], tmp_path: Any) -> None:
    """What was sent is waited for, summed up and recorded; the exit code says that it was cut."""
    fake, address = router
    line = ["load", "--router", address, "--rate", "50", "--duration", "600", "--json"]
    command = [sys.executable, "-m", "services.cli", *line, "--out", str(tmp_path / "run.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until_sync(lambda: len(fake.specs) > 3, "requests come")
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, error
    found = json.loads(out)
    total = found["total"]
    assert total["offered"] == total["on_time"] == len(fake.specs)
    assert found["interrupted"]
    assert found["planned"] > 20_000
    assert b"were sent" in error
    assert (tmp_path / "run.npz").exists()


@pytest.mark.parametrize(
    ("option", "most"), [("--prompt-tokens", 16_384), ("--output-tokens", 65_536)]
)
@pytest.mark.parametrize("text", ["0", "-3", "many", "1e3", "9" * 5_000, "65537", "\u0664"])
def test_lengths_that_are_none_are_one_line(
    option: str, most: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is named with what it takes."""
    assert run(["load", "--router", "127.0.0.1:9", option, text]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{option}: expected a number of tokens from 1 to {most}, or drawn" in error
    assert len(error) < 300


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "-1"], "--rate: must be 0 to 10000 requests a second, got -1"),
        (["--duration", "0"], "--duration: must be above 0 and at most 3600 seconds, got 0"),
        (
            ["--phases", "a:5@2,b:-5@2"],
            "--phases: must be above 0 and at most 3600 seconds, got -5",
        ),
        (["--phases", "a:5@-3"], "--phases: must be 0 to 10000 requests a second, got -3"),
        (["--square", "1,2,3,0"], "--square: cycle_count: must be at least 1, got 0"),
        (["--square", "1,2,3"], "--square: expected LOW,HIGH,HALF_PERIOD_S,CYCLES, got '1,2,3'"),
        (["--deadline", "-1"], "--deadline: must be above 0 and at most 3600 seconds, got -1"),
        (["--deadline", "inf"], "--deadline: must be above 0 and at most 3600 seconds, got inf"),
        (["--token-interval", "0"], "--token-interval: must be above 0 and at most 60 seconds"),
        (["--cv", "17"], "--cv: must be above 0 and at most 16, got 17"),
        (["--process", "pareto"], "--process: must be one of poisson, gamma, uniform"),
    ],
)
def test_an_option_that_cannot_be_is_named_before_the_mesh_is_asked(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its limits and what was given; nobody listens at the address."""
    assert run(["load", "--router", "127.0.0.1:9", *arguments]) == 2
    assert f"tiercel: {message}" in complaint(capsys)


@pytest.mark.parametrize("option", ["--router", "--mesh", "--config"])
def test_a_spec_names_its_own_routers(
    option: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other mesh than the one on the command line gets the load by accident."""
    asked = ["load", "--spec", str(tmp_path / "spec.toml"), option, "10.0.0.1:7410"]
    assert run(asked) == 2
    assert complaint(capsys).startswith(f"tiercel: {option}: not with --spec")
