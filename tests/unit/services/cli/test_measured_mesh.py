"""How `tiercel calibrate` and `tiercel quality` call the tiers that they measure."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from services.calibrate.tiers import LiveTier
from services.cli.measured_mesh import live_tiers, read_mesh
from services.local.errors import CommandError, InputError
from services.local.target import Target
from tests import certificates
from tests.unit.services.common.settings_file import MESH, PROFILE, QUALITY

FAR = "10.0.0.5:8000"


def written(folder: Path, address: str, more: str = "", *, with_tls: bool = False) -> Target:
    """Writes the settings of a mesh whose one endpoint speaks OpenAI and wants a key."""
    (folder / "p.toml").write_text(PROFILE)
    (folder / "q.toml").write_text(QUALITY)
    endpoint = f'protocol = "openai"\napi_key_variable = "SERVER_KEY"\naddress = "{address}"'
    text = MESH.replace('address = "127.0.0.1:8001"', endpoint).partition("[trainer]")[0]
    if with_tls:
        tls = certificates.tls_settings("operator")
        files = (("root_certificates", tls.root_certificates), ("key", tls.key))
        more += f'[mesh.tls]\ncertificate = "{tls.certificate}"\n'
        more += "".join(f'{name} = "{path}"\n' for name, path in files)
    path = folder / "tiercel.toml"
    path.write_text(f"{text}{more}")
    return Target(config=str(path))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The endpoint's key."""
    monkeypatch.setenv("SERVER_KEY", "k")


def test_certificates_of_the_mesh_are_shown(tmp_path: Path) -> None:
    """As routers show theirs; without any, endpoints on this machine are called in plain text."""
    target = written(tmp_path, FAR, with_tls=True)
    for tier in live_tiers(target, read_mesh(Path(target.config))):
        assert tier.tls is not None
        assert tier.api_key == "k"
    target = written(tmp_path, "127.0.0.1:1")
    assert [tier.tls for tier in live_tiers(target, read_mesh(Path(target.config)))] == [None, None]


def test_nothing_is_sent_to_other_machines_in_plain_text(tmp_path: Path) -> None:
    """Neither prompts nor keys, unless routers may."""
    target = written(tmp_path, FAR)
    with pytest.raises(InputError, match=rf"{FAR} is on another machine.*insecure_open_to_network"):
        live_tiers(target, read_mesh(Path(target.config)))
    leave = "[router_inference]\ninsecure_open_to_network = true\n"
    target = written(tmp_path, FAR, leave)
    assert len(live_tiers(target, read_mesh(Path(target.config)))) == 2


def test_a_tier_that_the_monitor_does_not_know_yet_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings name it, and before anybody can serve it there must be a profile of it."""
    joined = LiveTier("small", "m", "127.0.0.1:2", "joined", "gpu1")
    monkeypatch.setattr("services.cli.measured_mesh.tiers_of_monitor", lambda _: [joined])
    target = dataclasses.replace(written(tmp_path, "127.0.0.1:1"), load_monitor="127.0.0.1:9")
    found = live_tiers(target, read_mesh(Path(target.config)))
    assert [(each.tier, each.address) for each in found] == [
        ("small", "127.0.0.1:2"),
        ("large", "127.0.0.1:1"),
    ]


def test_a_monitor_that_does_not_run_is_not_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the settings name endpoints; it is said all the same."""
    target = dataclasses.replace(written(tmp_path, "127.0.0.1:1"), load_monitor="127.0.0.1:9")
    mesh = read_mesh(Path(target.config))
    assert {each.address for each in live_tiers(target, mesh)} == {"127.0.0.1:1"}
    assert "no load monitor answers at 127.0.0.1:9" in capsys.readouterr().err
    with pytest.raises(CommandError, match="no load monitor answers"):
        live_tiers(target, mesh.model_copy(update={"endpoints": ()}))
