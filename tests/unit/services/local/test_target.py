"""Which mesh a command means."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.local.errors import CommandError, InputError
from services.local.manifest import Manifest, run_folder, started_ticks
from services.local.target import resolve

SETTINGS = """
[mesh]
tiers = ["small"]
profile = "p.toml"
quality = "q.toml"
load_monitor_address = "127.0.0.1:7411"
[[mesh.tasks]]
name = "chat"
default_deadline_s = 1.0
[[mesh.endpoints]]
name = "e"
address = "127.0.0.1:8001"
tiers = ["small"]
[router_inference]
listen = "0.0.0.0:7777"
"""


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file, no mesh here, and an environment that says nothing."""
    for name in ("ROUTER", "MONITOR", "TRAINER", "CONFIG", "MESH"):
        monkeypatch.delenv(f"TIERCEL_{name}", raising=False)
    monkeypatch.setenv("TIERCEL_STATE", str(tmp_path))
    path = tmp_path / "tiercel.toml"
    path.write_text(SETTINGS)
    return path


def running(name: str) -> None:
    """Has a mesh of `tiercel up` run here, with its router at port 1."""
    Manifest(
        name,
        os.getpid(),
        started_ticks(os.getpid()),
        "reference",
        "c.toml",
        ("127.0.0.1:1",),
        {},
        {},
        {},
        {},
    ).write(run_folder(name))


def test_the_command_line_comes_first_then_the_environment_then_the_mesh_here(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each place that says something ends the search."""
    running("here")
    assert resolve().routers == ("127.0.0.1:1",)
    monkeypatch.setenv("TIERCEL_CONFIG", str(config))
    assert resolve().routers == ("127.0.0.1:7777",)
    monkeypatch.setenv("TIERCEL_ROUTER", "127.0.0.1:2, 127.0.0.1:3")
    assert resolve().routers == ("127.0.0.1:2", "127.0.0.1:3")
    assert resolve(config=config).routers == ("127.0.0.1:7777",)
    assert resolve(mesh="here").routers == ("127.0.0.1:1",)
    assert resolve(routers=["127.0.0.1:4"]).routers == ("127.0.0.1:4",)


def test_a_settings_file_gives_what_no_address_is_given_for(config: Path) -> None:
    """A router that listens everywhere is dialled on this machine."""
    target = resolve(trainer="127.0.0.1:9", config=config)
    assert target.routers == ("127.0.0.1:7777",)
    assert (target.load_monitor, target.trainer) == ("127.0.0.1:7411", "127.0.0.1:9")
    assert target.config == str(config)


def test_what_was_looked_for_is_named() -> None:
    """Every place, in its order."""
    with pytest.raises(CommandError) as found:
        resolve()
    text = str(found.value)
    places = ["--router", "--config", "$TIERCEL_ROUTER", "$TIERCEL_CONFIG", "/run", "tiercel up"]
    found_at = [text.index(each) for each in places]
    assert found_at == sorted(found_at)


def test_a_place_that_is_wrong_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address, a file, or two names for one thing."""
    monkeypatch.setenv("TIERCEL_MONITOR", "nowhere")
    with pytest.raises(InputError, match=r"\$TIERCEL_MONITOR: expected host:port"):
        resolve()
    config.write_text("[mesh]\nname = 1\n")
    with pytest.raises(InputError, match=r"--config: .*tiers: is missing"):
        resolve(config=config)
    with pytest.raises(InputError, match="--config, --mesh: give one"):
        resolve("m", config=config)
