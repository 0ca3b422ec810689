"""``tiercel quality`` on tiers that are not ours."""

from __future__ import annotations

import json
import pathlib
import tomllib

import pytest

from services.cli.app import run
from tests.fakes.triton import FakeTriton, Script
from tests.unit.services.cli.said import complaint

EXAMPLE = {"task": "capital", "prompt": "Italy?", "answer": "Rome", "match": "contains"}


@pytest.fixture
def examples(tmp_path: pathlib.Path) -> pathlib.Path:
    """Fifty examples of somebody's own task."""
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join([json.dumps(EXAMPLE)] * 50))
    return path


def measured(out: pathlib.Path, *options: object) -> int:
    """The exit code of the command."""
    return run(["quality", "--out", str(out), *(str(each) for each in options)])


def test_own_examples_make_the_table(
    triton: FakeTriton, foreign_mesh: pathlib.Path, examples: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The settings' endpoints are asked, no monitor is needed, the table has the models' names."""
    triton.scripts = {"llm-70b": Script(("in ", "Rome")), "mini": Script(("no",))}
    out = tmp_path / "q.toml"
    assert measured(out, "--config", foreign_mesh, "--prompts", examples) == 0
    table = tomllib.loads(out.read_text())
    assert table["name"] == "llm-70b+mini"
    assert table["quality"] == {"capital": {"mini": 0.0, "big": 1.0}}
    assert table["low95"]["capital"]["big"] == pytest.approx(0.929, abs=1e-3)


def test_strangers_are_not_asked_our_questions(
    triton: FakeTriton,
    foreign_mesh: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without examples there is no table, and no model was asked anything."""
    out = tmp_path / "q.toml"
    assert measured(out, "--config", foreign_mesh) == 2
    assert "--prompts FILE with your own examples" in complaint(capsys)
    assert not triton.received
    assert not out.exists()


def test_tiers_that_know_nothing_get_no_table(
    foreign_mesh: pathlib.Path,
    examples: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """0.000 everywhere is no quality of 1.000."""
    out = tmp_path / "q.toml"
    assert measured(out, "--config", foreign_mesh, "--prompts", examples) == 1
    assert "capital: big, the largest tier, scored 0.000" in capsys.readouterr().err
    assert not out.exists()


def test_scores_of_a_judge_need_no_mesh(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is asked; the order of the tiers is given, or found and said."""
    scores, out = tmp_path / "judged.jsonl", tmp_path / "q.toml"
    rows = [("a", "x", 0.5), ("a", "y", 1.0)]
    keys = ("task", "tier", "score")
    scores.write_text("\n".join(json.dumps(dict(zip(keys, row, strict=True))) for row in rows * 30))
    assert measured(out, "--scores", scores) == 0
    assert tomllib.loads(out.read_text())["quality"] == {"a": {"x": 0.5, "y": 1.0}}
    assert "by their scores: x, y" in capsys.readouterr().err
    assert measured(out, "--scores", scores, "--tiers", "y,x", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["a"]["y"]["quality"] == 1.0
    for order, problem in (("y,z", "name every tier"), ("y,x,x", "name each tier once")):
        assert measured(out, "--scores", scores, "--tiers", order) == 2
        said = complaint(capsys)
        assert f"--tiers: {problem}; the tiers are x, y, got {', '.join(order.split(','))}" in said


def test_scores_are_compared_with_the_mesh_of_the_environment(
    foreign_mesh: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its order of the tiers holds, whatever the scores say; names that it lacks are said."""
    monkeypatch.setenv("TIERCEL_CONFIG", str(foreign_mesh))
    scores, out = tmp_path / "judged.jsonl", tmp_path / "q.toml"
    rows = [{"task": "capital", "tier": tier, "score": 0.8} for tier in ("big", "mini")] * 30
    scores.write_text("\n".join(map(json.dumps, rows)))
    assert measured(out, "--scores", scores) == 0
    assert list(tomllib.loads(out.read_text())["quality"]["capital"]) == ["mini", "big"]
    assert "no " not in capsys.readouterr().err
    rows = [{"task": "captial", "tier": "bigg", "score": 0.8}] * 30
    scores.write_text("\n".join(map(json.dumps, rows)))
    assert measured(out, "--scores", scores) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the mesh has no task captial; it has capital" in said
    assert "the mesh has no tier bigg; it has mini, big" in said
    assert "nobody measured it: capital" in said


def test_answers_are_written_for_a_judge(
    triton: FakeTriton,
    foreign_mesh: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every tier answers every prompt; with scores added the file makes the table."""
    triton.scripts = {"llm-70b": Script(("in ", "Rome")), "mini": Script(("n\u00f3",))}
    prompts, answers, out = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "q.toml"))
    asked = [{"task": "capital", "prompt": f"Italy {index}?"} for index in range(30)]
    prompts.write_text("\n".join(map(json.dumps, asked)))
    given = ("--config", foreign_mesh, "--prompts", prompts, "--answers", answers)
    assert measured(out, *given) == 0
    assert not out.exists()
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [each["prompt"] for each in asked for _ in "12"]
    assert lines[:2] == [
        {"task": "capital", "tier": "big", "prompt": "Italy 0?", "answer": "in Rome"},
        {"task": "capital", "tier": "mini", "prompt": "Italy 0?", "answer": "n\u00f3"},
    ]
    judged = [line | {"score": 1.0 if line["tier"] == "big" else 0.5} for line in lines]
    answers.write_text("\n".join(map(json.dumps, judged)))
    assert measured(out, "--config", foreign_mesh, "--scores", answers) == 0
    assert tomllib.loads(out.read_text())["quality"] == {"capital": {"mini": 0.5, "big": 1.0}}


def test_answers_need_prompts_of_a_task(
    foreign_mesh: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What would make no line of scores is refused before anybody is asked."""
    prompts, answers, out = (tmp_path / name for name in ("p.jsonl", "a.jsonl", "q.toml"))
    assert measured(out, "--config", foreign_mesh, "--answers", answers) == 2
    assert "--answers: goes with --prompts" in complaint(capsys)
    prompts.write_text('{"prompt": "Italy?"}\n{"task": "capital", "prompt": "Italy?"}\n')
    given = ("--config", foreign_mesh, "--prompts", prompts, "--answers", answers)
    assert measured(out, *given) == 2
    assert "task: is missing in 1 of 2 lines" in complaint(capsys)
    assert not answers.exists()


@pytest.mark.parametrize("answers", [(), ("--answers", "a.jsonl")])
def test_what_is_wrong_in_a_file_is_told_before_a_server_is_asked(
    answers: tuple[str, ...],
    triton: FakeTriton,
    foreign_mesh: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is no less a mistake while the servers are away."""
    monkeypatch.chdir(tmp_path)
    foreign_mesh.write_text(foreign_mesh.read_text().replace(triton.address, "127.0.0.1:9"))
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("no JSON\n")
    given = ("--config", foreign_mesh, "--prompts", prompts, *answers)
    assert run(["quality", *map(str, given)]) == 2
    assert "p.jsonl: line 1: not JSON" in complaint(capsys)
