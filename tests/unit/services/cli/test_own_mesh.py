"""The mesh that train and evaluate simulate, from its own settings file."""

from __future__ import annotations

import json
import pathlib

import pytest

from services.cli.app import run
from services.cli.own_mesh import asked_mesh, config_in_force, read_own_mesh
from services.local.errors import InputError
from trainer.evaluation.inputs import Asked, read_inputs

TIER = "per_sequence_s = 0.0001\nper_prompt_token_s = 0.00001\n"
FILES = {
    "mesh.toml": """
[mesh]
name = "ours"
tiers = ["mini", "big"]
profile = "p.toml"
quality = "q.toml"
bytes_per_token = 5.0
[[mesh.tasks]]
name = "chat"
default_deadline_s = 2.0
expected_output_tokens = 30
default_max_output_tokens = 64
[[mesh.tasks]]
name = "tags"
default_deadline_s = 0.5
expected_output_tokens = 10
[[mesh.endpoints]]
name = "a"
address = "127.0.0.1:8001"
device = "gpu0"
tiers = ["big", "mini"]
[[mesh.endpoints]]
name = "b"
address = "127.0.0.1:8002"
device = "gpu1"
tiers = ["mini"]
""",
    "p.toml": 'name = "measured"\nsource = "measured"\n'
    f"[tiers.big]\nstep_s = 0.01\n{TIER}[tiers.mini]\nstep_s = 0.002\n{TIER}",
    "q.toml": 'name = "q"\nsource = "measured"\n'
    "[quality.chat]\nmini = 0.5\nbig = 1.0\n[quality.tags]\nmini = 0.9\nbig = 1.0\n",
}


@pytest.fixture
def config(tmp_path: pathlib.Path) -> pathlib.Path:
    """A settings file of two tasks and two devices, its profile in another order."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path / "mesh.toml"


def test_tasks_deadlines_tiers_and_devices_are_the_meshs_own(config: pathlib.Path) -> None:
    """Each task keeps its deadline, each device its tiers, in the order of quality."""
    own = read_own_mesh(config, None)
    assert own.catalog.tiers == tuple(own.profile.tiers) == ("mini", "big")
    assert own.devices == (("mini", "big"), ("mini",))
    assert (own.lengths.output_mean, own.lengths.output_max) == (20.0, 64)
    # Routers know how long simulated answers are, which are of one length in all tasks.
    assert {task.expected_output_tokens for task in own.catalog.tasks} == {20.0}
    setting = own.setting()
    deadlines = [task.default_deadline_s for task in setting.catalog.tasks]
    assert deadlines == [2.0, 0.5]
    assert setting.fleet.candidate_count == 3
    assert "give --prompts" in own.notes[0]


def test_prompts_say_lengths_and_mix(config: pathlib.Path) -> None:
    """Stated tokens count, else bytes by the mesh's rate; tasks are as likely as in the file."""
    path = config.with_name("prompts.jsonl")
    lines = [
        {"task": "chat", "prompt": "x" * 500},
        {"task": "chat", "prompt": "x", "prompt_tokens": 100},
        {"task": "tags", "prompt": "x" * 500},
    ]
    path.write_text("\n".join(json.dumps(each) for each in lines))
    own = read_own_mesh(config, path)
    assert own.lengths.prompt_median == pytest.approx(100.0)
    assert own.lengths.prompt_max == 100
    assert own.setting().shares == (2.0, 1.0)
    assert not own.notes


def test_an_evaluation_of_ones_own_is_not_the_papers(config: pathlib.Path) -> None:
    """No shipped snapshot is of this mesh, and none of the paper's targets is about it."""
    inputs = read_inputs(Asked(own=read_own_mesh(config, None), policies=("greedy",)))
    assert not inputs.is_papers
    assert inputs.learned == ""
    assert set(inputs.contenders) == {"static-mini", "static-big", "price", "greedy"}
    assert read_inputs(Asked(policies=("greedy",))).is_papers


def test_what_the_settings_say_is_not_said_twice(config: pathlib.Path) -> None:
    """An option beside --config is named; prompts without it are as well."""
    with pytest.raises(InputError, match="--deadline-s: the settings file says this"):
        asked_mesh(config, None, deadline_s=0.4)
    with pytest.raises(InputError, match="--prompts: needs --config"):
        asked_mesh(None, config, deadline_s=None)
    assert asked_mesh(None, None, deadline_s=0.2, devices=None, profile="") == {"deadline_s": 0.2}


def test_the_environment_names_the_mesh_where_nothing_else_does(
    config: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for other commands; an option that describes a mesh, or --config, counts before it."""
    monkeypatch.setenv("TIERCEL_CONFIG", str(config))
    assert config_in_force(None, profile="", devices=None) == config
    assert capsys.readouterr().err == f"the mesh of $TIERCEL_CONFIG: {config}\n"
    other = pathlib.Path("other.toml")
    assert config_in_force(other) == other
    assert config_in_force(None, profile="opt-a100") is None
    monkeypatch.delenv("TIERCEL_CONFIG")
    assert config_in_force(None) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_train_and_evaluate_follow_the_environment(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is not there is named, before anything is simulated."""
    monkeypatch.setenv("TIERCEL_CONFIG", "/no/such/mesh.toml")
    assert run([command]) == 2
    assert "/no/such/mesh.toml" in capsys.readouterr().err.splitlines()[-1]


def test_mistakes_of_all_its_files_are_named(config: pathlib.Path) -> None:
    """A profile without a tier and a table without a task are two lines of one error."""
    config.with_name("p.toml").write_text(FILES["p.toml"].partition("[tiers.mini]")[0])
    config.with_name("q.toml").write_text(FILES["q.toml"].partition("[quality.tags]")[0])
    with pytest.raises(InputError, match=r"tiers\.mini: missing") as error:
        read_own_mesh(config, None)
    assert "quality.tags.mini: missing" in str(error.value)
