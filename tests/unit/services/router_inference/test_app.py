"""Files that the router's settings name."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from services.common.settings import SettingsError, load_settings
from services.common.start_error import StartError
from services.router_inference import app
from services.router_inference.app import build_app, ticket_key
from services.router_inference.settings import RouterInferenceSettings, Settings, default_task
from tests.fakes.router_process import mesh_toml
from tests.unit.services.router_inference.parts import TASKS, make_rig
from tests.unit.services.router_inference.scenario import scenario


def settings_of(path: Path) -> RouterInferenceSettings:
    """Settings that take the key from a file."""
    return RouterInferenceSettings.model_construct(ticket_key="", ticket_key_file=str(path))


def test_a_key_is_read_without_its_line_end(tmp_path: Path) -> None:
    """Editors and `echo` put one there."""
    (tmp_path / "key").write_bytes(b"k" * 16 + b"\n")
    assert ticket_key(settings_of(tmp_path / "key")) == b"k" * 16


@pytest.mark.parametrize("content", [b"", b"k" * 15, b"k" * 5_000])
def test_a_key_that_is_too_short_or_too_long_is_refused(tmp_path: Path, content: bytes) -> None:
    """The line names the file and what is allowed."""
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(SettingsError, match="key: must have 16 to 1024 bytes"):
        ticket_key(settings_of(tmp_path / "key"))


def test_what_is_no_file_or_has_no_end_is_refused(tmp_path: Path) -> None:
    """A folder and a device are told in one line, and no more than a key is read."""
    with pytest.raises(SettingsError, match="cannot be read: Is a directory"):
        ticket_key(settings_of(tmp_path))
    with pytest.raises(SettingsError, match="must have 16 to 1024 bytes"):
        ticket_key(settings_of(Path("/dev/zero")))


@scenario
async def test_the_default_task_is_the_settings_or_the_only_one() -> None:
    """With several tasks and no setting there is none; one that does not exist is refused."""
    found = make_rig(default_task="soft").app.settings
    assert default_task(found.router_inference, found.mesh) == "soft"
    found = make_rig().app.settings
    assert default_task(found.router_inference, found.mesh) == ""
    found = make_rig(tasks=TASKS[:1]).app.settings
    assert default_task(found.router_inference, found.mesh) == "hard"
    with pytest.raises(SettingsError, match="default_task: unknown task 'x'; mesh"):
        make_rig(default_task="x")


@scenario
async def test_what_would_cross_a_network_in_plain_text_is_refused() -> None:
    """All of it at once, and what others could reach beside it; a setting gives leave."""
    far = {
        "endpoints": [{"name": "e0", "address": "10.0.0.5:8001", "tiers": ("small",)}],
        "redis_url": "redis://10.0.0.7/0",
        "load_monitor_address": "10.0.0.8:7411",
        "trainer_address": "10.0.0.9:7412",
    }
    with pytest.raises(SettingsError) as caught:
        make_rig(mesh=far, listen="0.0.0.0:0")
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        "mesh.endpoints.0.address",
        "mesh.load_monitor_address",
        "mesh.trainer_address",
        "mesh.redis_url",
        "router_inference.listen",
    ]
    make_rig(mesh=far, listen="0.0.0.0:0", insecure_open_to_network=True)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("listen", "the port is in use$"),
        ("metrics_listen", "the port is in use; name another in metrics_listen"),
    ],
)
def test_a_port_in_use_is_said_before_anything_is_compiled(
    setting: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start of a version would compile for a minute, and then not start."""

    def compiled(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(app, "obtain", compiled)
    path = tmp_path / "tiercel.toml"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        overrides = {
            "router_inference.listen": "127.0.0.1:0",
            "router_inference.metrics_listen": "",
        }
        overrides[f"router_inference.{setting}"] = address
        path.write_text(mesh_toml([("e0", "127.0.0.1:1")]))
        settings = load_settings(Settings, path=path, environ={}, overrides=overrides)
        with pytest.raises(StartError, match=f"cannot listen on {address}: {text}"):
            build_app(settings)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("mesh.profile", "gone.toml", "mesh.profile"),
        ("router_inference.policy", "greedyy", "policy"),
        ("router_inference.default_task", "nosuch", "default_task"),
        ("router_inference.policy_parameters", "{ price = { nosuch = 1.0 } }", "nosuch"),
    ],
)
def test_settings_that_are_wrong_are_said_before_anything_is_compiled(
    key: str, value: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of which only the mesh's files can tell."""

    def compiled(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(app, "obtain", compiled)
    path = tmp_path / "tiercel.toml"
    path.write_text(mesh_toml([("e0", "127.0.0.1:1")]))
    overrides = {"router_inference.listen": "127.0.0.1:0", "router_inference.metrics_listen": ""}
    settings = load_settings(Settings, path=path, environ={}, overrides=overrides | {key: value})
    with pytest.raises(SettingsError, match=text):
        build_app(settings)
