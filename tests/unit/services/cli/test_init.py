"""``tiercel init``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from router.profile import LatencyProfile, TierProfile
from services.cli.app import run
from services.common.mesh_settings import EndpointSettings, load_mesh_files
from services.common.settings import load_settings
from services.local.foreign import Foreign
from services.local.own_tls import VARIABLES
from services.router_inference.settings import Settings
from tests import certificates
from tests.unit.services.cli.said import complaint

ADDRESS = "127.0.0.1:8001"


@pytest.fixture(autouse=True)
def foreign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Triton with two tiers, and an empty folder to stand in."""
    tiers = {name: TierProfile(0.01, 0.0001, 0.0) for name in ("a-1b", "a-7b")}
    endpoint = EndpointSettings(
        name="triton-0", address=ADDRESS, tiers=tuple(tiers), models={"a-7b": "A-7B"}
    )
    profile = LatencyProfile("first-look", "assumed", tiers, "")

    async def look_at(*_: Any) -> Foreign:
        return Foreign(tuple(tiers), (endpoint,), profile, ("the moon is a cheese",))

    monkeypatch.setattr("services.cli.init.look_at", look_at)
    monkeypatch.chdir(tmp_path)


def test_the_files_start_a_router_and_every_guess_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the file and on the terminal; the file is minimal: no Redis, monitor or trainer."""
    assert run(["init", ADDRESS, "--task", "chat=0.8/64", "--task", "code=2"]) == 0
    said = capsys.readouterr().err
    text = (tmp_path / "tiercel.toml").read_text()
    for guess in ("the moon is a cheese", "0.1 worse than the next", "answers of chat have 32"):
        assert guess in said
        assert guess in text.partition("[mesh]")[0]
    assert "tiercel serve router --config tiercel.toml" in said
    document = tomllib.loads(text)
    assert document.keys() == {"mesh"}
    assert document["mesh"].keys() == {"name", "tiers", "profile", "quality", "tasks", "endpoints"}
    settings = load_settings(Settings, path=tmp_path / "tiercel.toml", environ={})
    chat, code = settings.mesh.tasks
    assert (chat.default_deadline_s, chat.default_max_output_tokens) == (0.8, 64)
    assert code.default_deadline_s == 2.0
    files = load_mesh_files(settings.mesh)
    assert files.quality.quality["code"] == {"a-1b": 0.9, "a-7b": 1.0}
    assert (files.quality.source, files.profile.source) == ("assumed", "assumed")


def test_monitor_and_trainer_are_named_where_they_are_wanted(tmp_path: Path) -> None:
    """At the addresses that they listen at by themselves."""
    assert run(["init", ADDRESS, "--task", "chat=1", "--monitor", "--trainer"]) == 0
    mesh = tomllib.loads((tmp_path / "tiercel.toml").read_text())["mesh"]
    assert mesh["load_monitor_address"] == "127.0.0.1:7411"
    assert mesh["trainer_address"] == "127.0.0.1:7412"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([ADDRESS], "--task"),
        (["nowhere", "--task", "chat=1"], "ADDRESS: expected host:port"),
        (["http://127.0.0.1:8001", "--task", "chat=1"], "ADDRESS: expected host:port"),
        ([ADDRESS, "--task", "chat"], "--task: expected NAME=SECONDS"),
        ([ADDRESS, "--task", "chat=soon"], "--task: 'chat=soon'"),
        (
            [ADDRESS, "--task", "Chat=1"],
            "--task: must be 1 to 64 characters of [a-z0-9_-], got 'Chat'",
        ),
        (
            [ADDRESS, "--task", "chat=-1"],
            "--task: 'chat=-1': SECONDS: input should be greater than 0",
        ),
        (
            [ADDRESS, "--task", "chat=1/0"],
            "--task: 'chat=1/0': TOKENS: input should be greater than or equal to 1",
        ),
        (
            [ADDRESS, "--task", "chat=1/99999"],
            "--task: 'chat=1/99999': TOKENS: input should be less than or equal to 65536",
        ),
        ([ADDRESS, "--task", "chat=1", "--tier", "small"], "--tier: expected TIER=MODEL"),
        ([ADDRESS, "--task", "chat=1", "--task", "chat=2"], "--task: task 'chat' is given twice"),
        ([ADDRESS, "--task", "chat=1", "--name", "My mesh"], "--name: must be 1 to 64 characters"),
        ([ADDRESS, "--task", "chat=1", "--tier", "7B=m"], "--tier: must be 1 to 64 characters"),
        (
            [ADDRESS, "--task", "chat=1", "--tier", "a=m", "--tier", "a=n"],
            "--tier: tier 'a' is given twice",
        ),
        (
            [ADDRESS, "--task", "chat=1", "--tier", "a=m", "--tier", "b=m"],
            "--tier: model 'm' is given twice",
        ),
    ],
)
def test_what_cannot_be_is_named_and_nothing_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    assert run(["init", *arguments]) == 2
    assert message in complaint(capsys)
    assert not list(tmp_path.glob("*.toml"))


def test_answers_may_be_of_one_token(tmp_path: Path) -> None:
    """A label, for instance: no fewer are expected than there can be."""
    assert run(["init", ADDRESS, "--task", "label=0.2/1"]) == 0
    settings = load_settings(Settings, path=tmp_path / "tiercel.toml", environ={})
    (label,) = settings.mesh.tasks
    assert (label.default_max_output_tokens, label.expected_output_tokens) == (1, 1.0)


def test_files_that_are_there_are_kept_without_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody may have edited them."""
    (tmp_path / "quality.toml").write_text("mine")
    assert run(["init", ADDRESS, "--task", "chat=1"]) == 2
    assert "quality.toml is there already" in complaint(capsys)
    assert run(["init", ADDRESS, "--task", "chat=1", "--force"]) == 0
    assert "a-7b" in (tmp_path / "quality.toml").read_text()


def test_a_key_is_named_by_its_variable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For servers that speak OpenAI alone; one that is not set is said before anything is asked."""
    asked = ["init", ADDRESS, "--task", "chat=1", "--api-key-variable", "SERVER_KEY"]
    assert run(asked) != 0
    assert "goes with --openai" in complaint(capsys)
    assert run([*asked, "--openai"]) != 0
    assert "SERVER_KEY is not set" in complaint(capsys)
    monkeypatch.setenv("SERVER_KEY", "secret")
    assert run([*asked, "--openai"]) == 0
    assert "secret" not in capsys.readouterr().err


def test_servers_on_other_machines_need_tls_or_leave(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is asked; leave is written for those that call endpoints."""
    asked = ["init", "10.0.0.5:8001", "--task", "chat=1", "--monitor", "--trainer"]
    assert run(asked) == 2
    said = complaint(capsys)
    for part in ("10.0.0.5:8001 is on another machine", VARIABLES[0], "--insecure-open-to-network"):
        assert part in said
    assert not list(tmp_path.glob("*.toml"))
    assert run([*asked, "--insecure-open-to-network"]) == 0
    document = tomllib.loads((tmp_path / "tiercel.toml").read_text())
    for section in ("router_inference", "load_monitor"):
        assert document[section] == {"insecure_open_to_network": True}
    assert "trainer" not in document
    tls = certificates.tls_settings("operator")
    for name, path in zip(
        VARIABLES, (tls.root_certificates, tls.certificate, tls.key), strict=True
    ):
        monkeypatch.setenv(name, path)
    assert run([*asked, "--force"]) == 0
    document = tomllib.loads((tmp_path / "tiercel.toml").read_text())
    assert document.keys() == {"mesh"}


def test_leave_is_not_written_where_nothing_needs_it(tmp_path: Path) -> None:
    """All servers are on this machine."""
    assert run(["init", ADDRESS, "--task", "chat=1", "--insecure-open-to-network"]) == 0
    assert tomllib.loads((tmp_path / "tiercel.toml").read_text()).keys() == {"mesh"}


def test_files_that_would_start_no_router_are_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server may have more models than a profile may have tiers."""
    tiers = {f"t{number}": TierProfile(0.01, 0.0001, 0.0) for number in range(65)}
    endpoint = EndpointSettings(name="triton-0", address=ADDRESS, tiers=tuple(tiers))
    profile = LatencyProfile("first-look", "assumed", tiers, "")

    async def look_at(*_: Any) -> Foreign:
        return Foreign(tuple(tiers), (endpoint,), profile, ())

    monkeypatch.setattr("services.cli.init.look_at", look_at)
    assert run(["init", ADDRESS, "--task", "chat=0.8"]) == 2
    assert "profile.toml: tiers: must have 1 to 64 tables" in capsys.readouterr().err
