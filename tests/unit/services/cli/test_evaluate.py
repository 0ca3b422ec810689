"""``tiercel evaluate``: what it writes, and what it says when something is wrong."""

from __future__ import annotations

import json
import pathlib
import re

import pytest

from services.cli.app import run
from tests.unit.trainer.evaluation import subjects
from trainer.evaluation import cases, plan
from trainer.evaluation.report.regret_figure import regret_figure
from trainer.evaluation.report.tables import gpu_table, regret_point_table

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
def written(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Folder in which the command has written report and record."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        command = small_command(patch, folder)
        assert run([*command, "--out", str(folder), "--record", str(folder / "record")]) == 0
    return folder


def test_report_says_how_to_have_it_again(written: pathlib.Path) -> None:
    """Command, commit, machine, versions, seeds and policy versions are in it."""
    report = json.loads((written / "report.json").read_text())
    assert report["command"].split()[0] == "tiercel"
    assert report["commit"]
    assert report["machine"]["cores"] >= 1
    assert "numpy" in report["versions"]
    assert len(report["seeds"]) == subjects.PLAN.seed_count
    assert set(report["policies"]) == {"static-small", "static-large", "price"}
    assert report["crosscheck"]["status"] == report["picker"]["status"] == "not run"


def test_page_stands_alone_and_shows_every_plot(written: pathlib.Path) -> None:
    """Nothing is fetched from outside, and there is a plot for each part of the protocol."""
    page = (written / "report.html").read_text()
    assert page.count("<svg") == 6
    assert not re.search(r"<(script|link|img|iframe)\b", page)
    assert "not judged" in page
    assert "nan" not in re.findall(r"<td[^>]*>([^<]*)</td>", page)


def test_picture_of_removed_regret_has_a_panel_per_family(written: pathlib.Path) -> None:
    """The rows of a policy that a report has are enough; points without regret are left out."""
    rows = json.loads((written / "report.json").read_text())["regret_points"]
    own = [row for row in rows if row["policy"] == "static-small" and row["safety_net"]]
    figure = regret_figure([*own[1:], {**own[0], "removed": None}])
    assert len(figure.axes) == len({row["family"] for row in own})
    table = regret_point_table(rows, "static-small", "price")
    assert len(table.rows) == len(own)


def test_ratio_against_nothing_is_said_in_words(written: pathlib.Path) -> None:
    """The table names the limit where the report has no number."""
    row = json.loads((written / "report.json").read_text())["per_gpu"][0]
    known = {**row, "static_serves_nothing": False, "per_gpu_ratio": 2.5}
    none = {**row, "static_serves_nothing": True, "per_gpu_ratio": None}
    cells = [line[-1] for line in gpu_table([known, none]).rows]
    assert cells == ["2.50x", "static serves < 0.1%"]


def test_record_is_small_and_names_its_pictures(written: pathlib.Path) -> None:
    """Every picture it shows lies beside it; all of it is below half a megabyte."""
    folder = written / "record"
    text = (folder / "evaluation.md").read_text()
    pictures = re.findall(r"\]\((evaluation-\w+\.png)\)", text)
    assert len(pictures) == 5
    assert sum((folder / name).stat().st_size for name in pictures) < 500_000
    assert "| price |" in text


def test_json_alone_writes_that_file_and_nothing_else(
    command: list[str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No tables, no page."""
    assert run([*command, "--json", "own.json", "--seeds", "1"]) == 0
    assert capsys.readouterr().out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"one.toml", "own.json"}
    assert len(json.loads((tmp_path / "own.json").read_text())["seeds"]) == 1


def test_policy_above_the_bound_fails_the_suite(
    command: list[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 1 and a line with policy, load and both numbers; the report is still written."""
    monkeypatch.setattr(cases, "performance_bound", lambda *_, **__: 0.5)
    out = tmp_path / "report.json"
    assert run([*command, "--json", str(out), "--seeds", "1"]) == 1
    *progress, error = capsys.readouterr().err.splitlines()
    assert all("%" in line for line in progress)
    assert "above 0.500000" in error
    assert "seed 900001" in error
    assert json.loads(out.read_text())["violations"]


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
