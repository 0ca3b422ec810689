"""What a load run asks for: prompts of a file, shared with the commands that measure."""

from __future__ import annotations

import json
import pathlib
from collections import Counter
from typing import Any

import pytest

from services.cli.app import run
from services.cli.load_traffic import lengths, read_prompts
from services.local.errors import InputError
from services.local.target import Target
from tests.fakes.router import FakeRouter
from tests.unit.services.cli.test_own_mesh import FILES
from tests.unit.services.loadgen.specs import spec_of


def file_of(folder: pathlib.Path, *lines: dict[str, Any]) -> pathlib.Path:
    """A file of prompts."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_prompts_of_a_file_are_sent_in_its_mix(
    router: tuple[FakeRouter, str], tmp_path: pathlib.Path
) -> None:
    """Three lines of one task for one of the other, each with the limit that it states."""
    path = file_of(
        tmp_path,
        *({"task": "sort", "prompt": f"s{n}", "max_output_tokens": 5} for n in range(3)),
        {"task": "reverse", "prompt": "r", "note": "left alone"},
    )
    line = ["load", "--router", router[1], "--rate", "200", "--duration", "0.5", "--json"]
    assert run([*line, "--prompts", str(path), "--out", str(tmp_path / "run.npz")]) == 0
    specs = router[0].specs
    assert {spec.prompt for spec in specs} == {"s0", "s1", "s2", "r"}
    counts = Counter(spec.task for spec in specs)
    assert counts["sort"] > 1.5 * counts["reverse"] > 0
    assert {spec.max_output_tokens for spec in specs if spec.task == "sort"} == {5}
    assert not any(spec.HasField("max_output_tokens") for spec in specs if spec.task == "reverse")


def test_lines_without_a_task_are_anybodys(
    router: tuple[FakeRouter, str], tmp_path: pathlib.Path
) -> None:
    """Then all tasks of the mesh are asked alike."""
    path = file_of(tmp_path, {"prompt": "p"})
    line = ["load", "--router", router[1], "--rate", "200", "--duration", "0.5", "--json"]
    assert run([*line, "--prompts", str(path), "--out", str(tmp_path / "run.npz")]) == 0
    assert {(spec.task, spec.prompt) for spec in router[0].specs} == {
        ("sort", "p"),
        ("reverse", "p"),
    }


@pytest.mark.parametrize(
    ("lines", "options", "problem"),
    [
        ([{"task": "sort", "prompt": "s"}], ["--mix", "reverse"], "no line is of task reverse"),
        ([{"task": "chat", "prompt": "s"}], [], "the mesh has no task 'chat'"),
        ([{"task": "sort"}], [], "line 1: prompt"),
        ([], [], "prompts.jsonl"),
        ([{"prompt": "s"}], ["--prompt-tokens", "9"], "--prompts, --prompt-tokens: give one"),
    ],
)
def test_prompts_that_do_not_fit_are_one_line(
    router: tuple[FakeRouter, str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    lines: list[dict[str, Any]],
    options: list[str],
    problem: str,
) -> None:
    """Nothing is sent, and what is wrong is named."""
    line = ["load", "--router", router[1], "--prompts", str(file_of(tmp_path, *lines)), *options]
    assert run(line) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert router[0].specs == []


def test_a_task_that_the_settings_do_not_have_is_a_mistake_of_its_line(
    foreign_mesh: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """As in every command that reads such a file."""
    path = file_of(tmp_path, {"task": "capital", "prompt": "p"}, {"task": "chat", "prompt": "p"})
    with pytest.raises(InputError, match="line 2: task: the mesh has no task 'chat'"):
        read_prompts(path, Target(config=str(foreign_mesh)))
    assert read_prompts(None, Target()) is None


def test_a_mesh_of_long_answers_can_be_asked(tmp_path: pathlib.Path) -> None:
    """The lengths that suit its profile are none that a run refuses."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("tokens = 30", "tokens = 60000"))
    found = lengths(Target(config=str(tmp_path / "mesh.toml")))
    assert (found["output_mean"], found["output_max"]) == (30_005.0, 65_536)
    assert spec_of("127.0.0.1:7410", lengths=found).lengths.output_max == 65_536


def test_a_tier_that_nobody_serves_is_refused_before_anything_is_sent(
    router: tuple[FakeRouter, str], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what a router says; one that says nothing of tiers is believed to have all."""
    fake, address = router
    line = ["load", "--router", address, "--rate", "60", "--duration", "0.2", "--json"]
    line += ["--out", str(tmp_path / "run.npz"), "--tier", "larg"]
    assert run(line) == 0
    fake.specs.clear()
    fake.served = ["small", "large"]
    capsys.readouterr()
    assert run(line) == 2
    said = capsys.readouterr().err
    assert "--tier: no endpoint of the mesh serves 'larg'; there are small, large" in said
    assert fake.specs == []
