"""Written repositories of paced fleets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from services.common.mesh_settings import EndpointSettings
from services.local.triton.repository.layout import RepositoryError, read_model_config
from services.local.triton.repository.paced import PacedFleet, write_paced_repository
from tests.unit.deploy.manifests import ROOT

TIERS = ("small", "medium", "large")
PROFILE = ROOT / "profiles" / "opt-a100.toml"
# Triton's protobuf numbers of the two kinds of instance that are used here.
KIND_CPU, KIND_MODEL = 2, 3
INTERFACE = {"text_input", "stream", "sampling_parameters", "exclude_input_in_output"}


def _fleet(**changes: Any) -> PacedFleet:
    return PacedFleet(**{"profile": PROFILE, "tiers": TIERS, **changes})


def _parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def test_shared_devices_carry_all_tiers_in_one_server(tmp_path: Path) -> None:
    """Two devices of three tiers are six models, each tier of a device in a slot of its own."""
    written = write_paced_repository(tmp_path / "fleet", _fleet(device_count=2, time_scale=4.0))
    [server] = written.servers
    configs = {path.parent.name: path for path in server.path.glob("*/config.pbtxt")}
    assert set(configs) == {f"gpu{device}_{tier}" for device in (0, 1) for tier in TIERS}
    parameters = [_parameters(read_model_config(configs[f"gpu1_{tier}"])) for tier in TIERS]
    assert [entry["tiercel_slot"] for entry in parameters] == ["0", "1", "2"]
    for tier, entry in zip(TIERS, parameters, strict=True):
        assert entry["tiercel_kind"] == "paced"
        assert entry["tiercel_tier"] == tier
        assert entry["tiercel_device"] == "gpu1"
        assert entry["tiercel_profile"] == "opt-a100"
        assert float(entry["tiercel_time_scale"]) == 4.0
        assert Path(unquote(entry["tiercel_state_directory"])).is_dir()


def test_written_model_is_complete(tmp_path: Path) -> None:
    """The model directory has everything the stub imports and reads."""
    [server] = write_paced_repository(tmp_path / "fleet", _fleet()).servers
    version = server.path / "gpu0_small" / "1"
    files = {path.name for path in version.iterdir()}
    assert files == {
        *("model.py", "device_clock.py", "paced_engine.py"),
        *("iteration_spread.py", "profile.toml"),
    }
    config = read_model_config(server.path / "gpu0_small" / "config.pbtxt")
    assert config.name == "gpu0_small"
    assert config.model_transaction_policy.decoupled
    assert config.instance_group[0].kind == KIND_CPU
    assert {tensor.name for tensor in config.input} >= INTERFACE


def test_own_devices_carry_one_tier_each(tmp_path: Path) -> None:
    """With own devices, every device has one tier and one endpoint."""
    written = write_paced_repository(tmp_path / "fleet", _fleet(sharing="own"))
    endpoints = written.servers[0].endpoints("127.0.0.1:8001")
    assert [(entry["device"], entry["tiers"]) for entry in endpoints] == [
        ("gpu0", ["small"]),
        ("gpu1", ["medium"]),
        ("gpu2", ["large"]),
    ]


def test_server_per_device(tmp_path: Path) -> None:
    """Each device gets a repository and a name of its own, and the clocks stay together."""
    written = write_paced_repository(
        tmp_path / "fleet", _fleet(device_count=2, servers="per_device")
    )
    assert [server.name for server in written.servers] == ["triton-0", "triton-1"]
    endpoint = written.servers[1].endpoints("127.0.0.1:8001", "127.0.0.1:8002")
    assert endpoint == [
        {
            "name": "triton-1",
            "address": "127.0.0.1:8001",
            "device": "gpu1",
            "tiers": list(TIERS),
            "models": {tier: f"gpu1_{tier}" for tier in TIERS},
            "metrics_address": "127.0.0.1:8002",
        }
    ]


def test_endpoints_fit_the_mesh_configuration(tmp_path: Path) -> None:
    """What is written is what the mesh's own settings accept."""
    [server] = write_paced_repository(tmp_path / "fleet", _fleet(device_count=2)).servers
    for entry in server.endpoints("127.0.0.1:8001", "127.0.0.1:8002"):
        settings = EndpointSettings.model_validate(entry)
        assert settings.tiers == TIERS


def test_all_problems_of_a_fleet_are_named(tmp_path: Path) -> None:
    """Several mistakes come in one error, each with its field."""
    fleet = _fleet(tiers=("small", "huge"), device_count=0, time_scale=-1.0)
    with pytest.raises(RepositoryError) as caught:
        write_paced_repository(tmp_path / "fleet", fleet)
    for part in ("'huge' is not in the profile", "device_count", "time_scale"):
        assert part in str(caught.value)
    assert not (tmp_path / "fleet").exists()


def test_foreign_files_are_not_deleted(tmp_path: Path) -> None:
    """A directory with other people's files is refused; one written before is replaced."""
    (tmp_path / "keep").write_text("mine")
    with pytest.raises(RepositoryError, match="not empty"):
        write_paced_repository(tmp_path, _fleet())
    assert (tmp_path / "keep").read_text() == "mine"
    write_paced_repository(tmp_path / "fleet", _fleet(device_count=2))
    write_paced_repository(tmp_path / "fleet", _fleet(device_count=1))
    assert not (tmp_path / "fleet" / "triton-0" / "gpu1_small").exists()


def test_injected_fault_is_written_for_the_device(tmp_path: Path) -> None:
    """The control file is the one the device's tiers read."""
    written = write_paced_repository(tmp_path / "fleet", _fleet())
    written.set_device("gpu0", slow_down=2.0)
    content = json.loads((written.state_directory / "gpu0.control.json").read_text())
    assert content == {"slow_down": 2.0, "state": "ok"}
    with pytest.raises(RepositoryError, match="state must be one of"):
        written.set_device("gpu0", state="burning")
