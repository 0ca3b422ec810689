"""``tiercel train``: what it answers, and what it says of inputs that are wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint
from tests.unit.services.cli.test_own_mesh import FILES
from trainer.evaluation import plan
from trainer.learning.checkpoint import CheckpointError
from trainer.shipped import POLICIES, shipped
from trainer.simulation.scenarios import Mesh


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--profile", "nope", "--quality", "opt"], "--profile: no file and no shipped name"),
        (["--profile", "opt-a100", "--quality", "nope"], "--quality: no file and no shipped name"),
        (["--profile", "opt-a100", "--quality", "empty.toml"], "empty.toml"),
        (["--profile", "opt-a100"], "--config: give your mesh's settings file"),
        (
            ["--profile", "opt-a100", "--quality", "opt", "--publish", "--trainer", "nowhere"],
            "--trainer: expected host:port",
        ),
    ],
)
def test_an_input_that_is_wrong_is_one_line(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bad input ends the command before anything is compiled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    assert run(["train", *options]) == 2
    assert said in complaint(capsys)


def test_the_answer_for_ones_own_mesh_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the training: what to use, up to which load, GPUs; a plot lies beside the snapshot."""
    short = dataclasses.replace(
        plan.BRIEF, seed_count=1, sweep_loads=(1.0, 4.0), gpu_loads=(0.5,), requests=100,
        shortest_s=2.0, longest_s=3.0, hold_s=2.0,
    )  # fmt: skip
    monkeypatch.setattr(plan, "BRIEF", short)
    snapshot = shipped(POLICIES, "reference.safetensors").read_bytes()
    trained: list[Mesh] = []

    def train_policy(mesh: Mesh, **_: object) -> bytes:
        trained.append(mesh)
        return snapshot

    monkeypatch.setattr("trainer.learning.offline.training.train_policy", train_policy)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    out = tmp_path / "own.safetensors"
    options = ["--config", str(tmp_path / "mesh.toml"), "--out", str(out), "--json"]
    assert run(["train", *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [task.default_deadline_s for task in trained[0].catalog.tasks] == [2.0, 0.5]
    assert found["answer"]["held_rps"] > 0.0
    assert found["answer"]["devices"] == 2
    assert found["answer"]["policy"] in found["answer"]["sentence"]
    assert {"own.png", "own.svg", "own.safetensors"} < {each.name for each in tmp_path.iterdir()}


def test_what_cannot_be_published_is_said_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trainer went away during the training, which is not lost for that."""
    snapshot = shipped(POLICIES, "reference.safetensors").read_bytes()
    monkeypatch.setattr("trainer.learning.offline.training.train_policy", lambda *_, **__: snapshot)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    out = tmp_path / "own.safetensors"
    options = ["--config", str(tmp_path / "mesh.toml"), "--out", str(out)]
    assert run(["train", *options, "--publish", "--trainer", "127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert f"{out} is written, but not published: no trainer answers" in said
    assert out.read_bytes() == snapshot


def test_what_cannot_be_written_is_not_trained_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's state stays until its snapshot is there, so that the next one goes on from it."""
    snapshot = shipped(POLICIES, "reference.safetensors").read_bytes()

    def train_policy(_: Mesh, *, checkpoint: Path, **__: object) -> bytes:
        checkpoint.touch()
        return snapshot

    def is_full(path: Path, _: bytes) -> None:
        raise CheckpointError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr("trainer.learning.offline.training.train_policy", train_policy)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    out = tmp_path / "own.safetensors"
    options = ["--config", str(tmp_path / "mesh.toml"), "--out", str(out), "--no-answer"]
    with monkeypatch.context() as full:
        full.setattr("trainer.learning.checkpoint.write_atomically", is_full)
        assert run(["train", *options]) == 1
    assert "No space left" in complaint(capsys)
    kept = tmp_path / "own.safetensors.checkpoint"
    assert kept.exists()
    assert run(["train", *options]) == 0
    assert out.read_bytes() == snapshot
    assert not kept.exists()
