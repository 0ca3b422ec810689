"""``tiercel evaluate``: what it writes, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
from typing import Any

import pytest

from services.cli.app import run
from tests.unit.trainer.evaluation import subjects
from trainer.evaluation import cases, plan

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
QUALITY = 'name = "one"\n[quality.easy]\nsmall = 0.5\nmedium = 0.8\nlarge = 1.0\n'


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> list[str]:
    """The command with a quick suite as small as it can be: one device, one task."""
    return small_command(monkeypatch, tmp_path)


def small_command(patch: pytest.MonkeyPatch, folder: pathlib.Path) -> list[str]:
    """Makes the quick suite small; returns the command and its options."""
    patch.setattr(plan, "PLANS", {"quick": subjects.PLAN})
    patch.chdir(folder)
    (folder / "one.toml").write_text(QUALITY)
    options = ["--policy", "price", "--quality", "one.toml", "--devices", "1", "--workers", "1"]
    return ["evaluate", *options]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, str]:
    """Folder in which the command was run for its JSON alone, and its standard output."""
    folder = tmp_path_factory.mktemp("evaluate")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        command = small_command(patch, folder)
        assert run([*command, "--json", "--seeds", "1"]) == 0
    return folder, out.getvalue()


def test_json_alone_is_printed_and_nothing_written(alone: tuple[pathlib.Path, str]) -> None:
    """No tables, no page."""
    folder, out = alone
    assert {path.name for path in folder.iterdir()} == {"one.toml"}
    assert len(json.loads(out)["seeds"]) == 1


def test_report_says_how_to_have_it_again(alone: tuple[pathlib.Path, str]) -> None:
    """Command, commit, machine, versions and policy versions are in it."""
    report = json.loads(alone[1])
    assert report["command"].split()[0] == "tiercel"
    assert report["commit"]
    assert report["machine"]["cores"] >= 1
    assert "numpy" in report["versions"]
    assert set(report["policies"]) == {"static-small", "static-large", "price"}
    assert report["crosscheck"]["status"] == report["picker"]["status"] == "not run"


def test_the_papers_targets_are_judged_in_the_papers_setting_only(
    alone: tuple[pathlib.Path, str],
) -> None:
    """Elsewhere the answer is about the user's own mesh, and no claim of the paper is in sight."""
    report = json.loads(alone[1])
    assert not report["is_papers"]
    assert report["headlines"]
    assert not any("paper" in row["target"] for row in report["headlines"])
    assert report["answer"]["policy"] in {"price", "static-large"}


def test_folder_gets_report_page_and_record(
    alone: tuple[pathlib.Path, str],
    command: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The terminal gets the tables and where the page is."""
    report = json.loads(alone[1])
    monkeypatch.setattr("trainer.evaluation.run.run_evaluation", lambda *_, **__: report)
    assert run([*command, "--out", str(tmp_path / "out"), "--record", str(tmp_path / "rec")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html"}
    assert (tmp_path / "rec" / "evaluation.md").exists()
    said = capsys.readouterr()
    assert said.out.startswith(report["answer"]["sentence"])
    assert "static-large" in said.out
    assert "report.html" in said.err


def test_policy_above_the_bound_fails_the_suite(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 and a line with policy, load and both numbers; the report is still written."""
    monkeypatch.setattr(cases, "performance_bound", lambda *_, **__: 0.5)
    assert run([*command, "--json", "--seeds", "1"]) == 1
    said = capsys.readouterr()
    *progress, error = said.err.splitlines()
    assert all("%" in line for line in progress)
    assert "above 0.500000" in error
    assert "seed 900001" in error
    assert json.loads(said.out)["violations"]


def test_runs_above_the_bound_fail_nothing_where_iterations_vary(
    alone: tuple[pathlib.Path, str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound reckons with the mean of their times, so a run may be lucky."""
    above: dict[str, Any] = dict.fromkeys(("suite", "label", "policy"), "price")
    above |= {"load": 1.0, "seed": 1, "performance": 0.9, "bound": 0.8}
    for varies, code in ((True, 0), (False, 1)):
        report = {**json.loads(alone[1]), "violations": [above], "iterations_vary": varies}
        monkeypatch.setattr("trainer.evaluation.run.run_evaluation", lambda *_, r=report, **__: r)
        assert run([*command, "--json"]) == code


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["--suite", "huge"], ["--suite", "quick, full"]),
        (["--profile", "no-such"], ["--profile", "known:", "opt-a100"]),
        (["--quality", "no-such"], ["--quality", "known:", "opt"]),
        (["--policy", "psychic"], ["unknown policy 'psychic'", "greedy", "price", "dqn"]),
        (["--workload", "tides"], ["unknown workload 'tides'", "gamma-cv4", "markov"]),
        (["--trace", "missing.csv"], ["--trace", "missing.csv", "azure-llm-code-like"]),
        (["--policy", "missing.safetensors"], ["missing.safetensors: cannot be read"]),
        (["--seeds", "-1"], ["--seeds"]),
        (["--crosscheck", "missing.json"], ["missing.json"]),
        (["--retrained", "missing.json"], ["missing.json"]),
    ],
)
def test_bad_input_is_named_with_what_is_known(
    arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line, no traceback."""
    assert run(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(message in error for message in messages), error


def test_all_mistakes_of_all_files_are_reported_at_once(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing tier, a cost that falls with quality, a quality above 1, a workload: one answer."""
    profile, quality = tmp_path / "p.toml", tmp_path / "q.toml"
    profile.write_text(
        'name = "p"\nsource = "assumed"\n'
        "[tiers.small]\nstep_s = 0.01\nper_sequence_s = 0\nper_prompt_token_s = 0\n"
        "[tiers.large]\nstep_s = 0.001\nper_sequence_s = -1\nper_prompt_token_s = 0\n"
    )
    quality.write_text('name = "q"\n[quality.easy]\nsmall = 0.5\nmedium = 0.8\nlarge = 1.0\n')
    arguments = ["--profile", str(profile), "--quality", str(quality), "--workload", "tides"]
    assert run(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    for part in ("tiers.medium: missing", "tiers.large.per_sequence_s", "unknown workload"):
        assert part in error, error
    assert "Traceback" not in error


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_damaged_snapshot_is_refused(
    damage: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file and the reason are named."""
    path = tmp_path / "policy.safetensors"
    path.write_bytes(b"\x10\0\0" if damage == "truncated" else b"\x08" + b"\0" * 7 + b"nonsense")
    assert run(["evaluate", "--policy", str(path)]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert "SNAPSHOT_" in error
