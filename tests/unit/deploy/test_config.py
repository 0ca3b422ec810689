"""The settings files of deploy/config are valid for the services that read them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from services.common.mesh_settings import load_mesh_files
from services.common.settings import SettingsError, load_settings
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    MESHES,
    ROOT,
    SERVICES,
    compose,
    config_path,
    pod,
    rendered,
)

_CASES = [(mesh, service) for mesh in MESHES for service in ALL_SERVICES]


def _load(mesh: str, service: str, environ: dict[str, str]) -> Any:
    module = importlib.import_module(f"services.{ALL_SERVICES[service]}.settings")
    return load_settings(module.Settings, path=config_path(mesh), environ=environ)


@pytest.mark.parametrize(("mesh", "service"), _CASES)
def test_settings_are_valid(mesh: str, service: str) -> None:
    """The service's own classes take the file, and every key of its section is known."""
    settings = _load(mesh, service, {})
    own = getattr(settings, ALL_SERVICES[service])
    assert own.listen.startswith("0.0.0.0:")
    assert not own.insecure_open_to_network


@pytest.mark.parametrize("mesh", MESHES)
def test_mesh_files_are_there(mesh: str) -> None:
    """Profile and quality table that the file names exist and fit its tiers and tasks."""
    settings = _load(mesh, "router-inference", {})
    files = load_mesh_files(settings.mesh)
    assert files.catalog.tiers == settings.mesh.tiers
    assert set(files.profile.tiers) >= set(settings.mesh.tiers)


def test_a_mistake_would_be_found() -> None:
    """The check of the tests above can fail."""
    with pytest.raises(SettingsError, match="grace_s"):
        _load("reference", "trainer", {"TIERCEL_TRAINER__GRACE_S": "-1"})


def test_router_takes_the_environment_of_its_pod() -> None:
    """Every TIERCEL variable that the Kubernetes manifests set is a setting of the router."""
    container = pod(rendered("base"), "router-inference")["containers"][0]
    environ = {
        entry["name"]: entry.get("value", "router-inference-7d9c5b-x2x4z")
        for entry in container["env"]
    } | {"TIERCEL_MESH__REDIS_URL": "rediss://router-inference:secret@redis:6379/0"}
    settings = _load("reference", "router-inference", environ).router_inference
    assert settings.router_id == "router-inference-7d9c5b-x2x4z"
    assert settings.ticket_key_file == environ["TIERCEL_ROUTER_INFERENCE__TICKET_KEY_FILE"]


@pytest.mark.parametrize("service", SERVICES)
def test_gpu_layer_leaves_one_endpoint(service: str) -> None:
    """The endpoints that the GPU layer sets by environment are one of the production settings'."""
    environ = compose("compose.gpu.yaml")["services"][service]["environment"]
    (endpoint,) = _load("production", service, environ).mesh.endpoints
    assert endpoint == _load("production", service, {}).mesh.endpoints[0]


def test_the_example_for_vllm_is_valid() -> None:
    """For every service, its profile and quality included."""
    for package in ("router_inference", "load_monitor", "trainer"):
        module = importlib.import_module(f"services.{package}.settings")
        path = ROOT / "examples" / "vllm.toml"
        mesh = load_settings(module.Settings, path=path, environ={}).mesh
        load_mesh_files(mesh)
        assert {each.protocol for each in mesh.endpoints} == {"openai"}
