"""``tiercel evaluate --live``: what is refused before anything starts, and what is written."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from services.cli.app import run
from services.live import compare
from services.live.compare import live, point
from tests.unit.services.live.subjects import PLAN, live_run

QUALITY = 'name = "one"\n[quality.easy]\nsmall = 0.5\nmedium = 0.8\n'


@pytest.fixture(autouse=True)
def never_started(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """No mesh is started; results lie in a folder of the test."""

    async def started(*_: Any) -> dict[str, Any]:
        raise AssertionError("a mesh was started")

    monkeypatch.setattr(compare, "evaluate_live", started)
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--time-scale", "20"], "--time-scale: needs --live"),
        (["--load", "1"], "--load: needs --live"),
        (["--live", "--trace", "azure-llm-code-like"], "--trace: is not for --live"),
        (["--live", "--deadline-s", "1"], "--deadline-s: is not for --live"),
        (["--live", "--load", "0"], "--load: must be 0.01 to 50, got 0"),
        (["--live", "--load", "50", "--seconds", "600", "--time-scale", "1"], "--load 50: "),
        (["--live", "--load", "0.01", "--devices", "1"], "--load 0.01: a run of 12 s here has "),
        (["--live", "--policy", "best"], "'best' is not run live"),
        (["--live", "--policy", "dqn-paper"], "'dqn-paper' is not run live"),
        (["--live", "--policy", "price+best"], "unknown picker 'best'"),
        (["--live", "--policy", "a.safetensors", "--policy", "b.safetensors"], "one snapshot file"),
        (["--live", "--policy", "a.safetensors"], "a.safetensors: cannot be read"),
        (["--live", "--profile", "opt"], "--profile: no file and no shipped name 'opt'"),
        (["--live", "--quality", "one.toml"], "--quality: one.toml: easy has no score for large"),
    ],
)
def test_a_wrong_command_line_starts_nothing(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, with the option and what it takes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text(QUALITY)
    assert run(["evaluate", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_table_numbers_and_plot_are_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The terminal says how near the simulator is, and where the rest lies."""
    asked = []

    async def ran(plan: compare.Plan, *_: Any) -> dict[str, Any]:
        asked.append(plan)
        points = [point(PLAN, live_run(), live(live_run()))]
        facts = {"unit_rps": 193.2, "tiers": ["small", "medium", "large"]}
        return {"plan": {"cpu_limit": 0.7}, "points": points, **facts}

    monkeypatch.setattr(compare, "evaluate_live", ran)
    assert run(["evaluate", "--live", "--load", "2", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "live.json",
        "live.png",
        "live.svg",
    }
    report = json.loads((tmp_path / "out" / "live.json").read_text())
    assert report["command"].startswith("tiercel")
    assert "1 of 1 runs that count are within" in capsys.readouterr().out
    assert asked[0].policies == ("dqn", "price", "static-small")
    assert asked[0].loads == (2.0,)


def test_where_no_run_counts_nothing_was_found_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers and plot are there, and the exit code is 1."""

    async def ran(*_: Any) -> dict[str, Any]:
        points = [point(PLAN, live_run(busy=0.9), live(live_run()))]
        facts = {"unit_rps": 193.2, "tiers": ["small", "medium", "large"]}
        return {"plan": {"cpu_limit": 0.7}, "points": points, **facts}

    monkeypatch.setattr(compare, "evaluate_live", ran)
    assert run(["evaluate", "--live", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "None of 1 runs counts" in said.out
    assert "no run counts" in said.err
    assert (tmp_path / "out" / "live.json").is_file()
