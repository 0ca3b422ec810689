"""``tiercel up``: what it says of options that are wrong."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from services.cli.app import run
from services.cli.up import curl_line, generate_line, next_line
from services.local import reference
from services.local.embedded import EmbeddedMesh
from services.local.fleets import ReferenceFleet
from services.local.paced_mesh import paced_options
from tests.unit.services.cli.said import complaint
from trainer.shipped import PROFILES, QUALITY, shipped


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "a b"], "mesh name"),
        (["--paced", "nope"], "--paced: no file and no shipped name 'nope'; known: opt-a100"),
        (["--paced", "empty.toml"], "tables [tiers.NAME]"),
        (
            ["--paced", "opt-a100", "--quality", "nope.toml"],
            "--quality: no file and no shipped name",
        ),
        (["--profile", "nope.toml"], "--profile: no file and no shipped name 'nope.toml'"),
        (["--profile", "opt-a100", "--quality", "opt"], "quality.reverse.small: missing"),
        (["--profile", "empty.toml"], "empty.toml: "),
        (["--quality", "empty.toml"], "empty.toml: "),
        (["--policy", "nosuch"], "unknown policy 'nosuch'; known: static-small, static-medium"),
        (["--policy", "price+nosuch"], "unknown picker 'nosuch'; known:"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is started for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    assert run(["up", *options]) == 2
    assert said in complaint(capsys)


def test_what_it_says_to_type_next_is_a_question_of_the_mesh() -> None:
    """Paced tiers have the tasks of their quality table, and not those of the reference tiers."""
    options = paced_options(
        "m", shipped(PROFILES, "opt-a100.toml"), quality=shipped(QUALITY, "opt.toml")
    )
    program, command, prompt, option, task = shlex.split(next_line(options))
    assert (program, command, option) == ("tiercel", "generate", "--task")
    assert prompt
    assert task in {each.name for each in options.tasks}
    tiers = dataclasses.replace(options, fleet=ReferenceFleet(), tasks=reference.task_entries())
    prompt = shlex.split(next_line(tiers))[-1]
    task = reference.task_of_prompt(prompt)
    assert not reference.prompt_problem(prompt, task)
    assert task in {each.name for each in tiers.tasks}


def test_a_door_is_a_part_of_the_mesh_if_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has an address then, and a line that asks it for one of the mesh's tasks."""
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    plain = paced_options(
        "m", shipped(PROFILES, "opt-a100.toml"), quality=shipped(QUALITY, "opt.toml")
    )
    both = dataclasses.replace(plain, openai_door=True, envoy=True)
    for options in (plain, both):
        mesh = EmbeddedMesh(options, say=lambda _: None)
        assert ("openai_door" in mesh.addresses) == options.openai_door
        assert ("envoy" in mesh.addresses) == options.envoy
        assert ("openai_door" in mesh.manifest().metrics) == options.openai_door
        mesh._claims.release()
    line = curl_line("127.0.0.1:7440", plain)
    assert line.startswith("curl http://127.0.0.1:7440/v1/chat/completions ")
    assert f'"model": "tiercel/{plain.tasks[0].name}"' in line
    line = generate_line("127.0.0.1:8080", plain)
    assert line.startswith("curl http://127.0.0.1:8080/v2/models/tiercel/generate_stream ")
    assert f"x-tiercel-task: {plain.tasks[0].name}" in line
