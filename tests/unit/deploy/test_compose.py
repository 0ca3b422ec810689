"""The Compose files: valid, on loopback only, with the commands and ports of the services."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.common.access.access import load_access
from services.common.access.plain_text import Outgoing
from services.common.log import get_logger
from services.common.settings import load_settings
from services.load_monitor import settings as monitor_settings
from services.local.triton.server.__main__ import TRACE_VARIABLE
from services.openai_door import settings as door_settings
from services.openai_door.app import build_app as build_door
from services.router_inference import settings as router_settings
from services.trainer import settings as trainer_settings
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    CONFIG_IN_IMAGE,
    DEPLOY,
    DOORS,
    ROOT,
    SERVICES,
    compose,
    config_path,
    dockerfile_stages,
    pod,
    port,
    rendered,
    section,
)

LAYERS = (
    (),
    ("compose.observability.yaml",),
    ("compose.gpu.yaml",),
    ("compose.observability.yaml", "compose.gpu.yaml"),
    ("compose.paced.yaml",),
    ("compose.paced.yaml", "compose.observability.yaml"),
)
_ROOM_S = 5.0


@pytest.fixture(scope="module", params=LAYERS, ids=lambda layers: "+".join(layers) or "base")
def merged(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The file with its layers, as Docker Compose merges them."""
    return compose(*request.param)


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    """The file without layers."""
    return compose()


def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    """The check of the fixtures above can fail."""
    layer = tmp_path / "wrong.yaml"
    layer.write_text("services: {redis: {imagee: x}}\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="imagee"):
        compose(str(layer))


def test_ports_are_published_on_loopback_only(merged: dict[str, Any]) -> None:
    """No port of any layer is reachable from another machine, and none is published twice."""
    published = [
        entry for service in merged["services"].values() for entry in service.get("ports", [])
    ]
    assert published
    assert {entry["host_ip"] for entry in published} == {"127.0.0.1"}
    numbers = [entry["published"] for entry in published]
    assert len(numbers) == len(set(numbers))


def test_images_are_pinned(merged: dict[str, Any]) -> None:
    """Every image names a tag, never `latest`."""
    for name, service in merged["services"].items():
        _, separator, tag = service["image"].rpartition(":")
        assert separator, name
        assert tag != "latest", name


def test_mounted_files_exist(merged: dict[str, Any]) -> None:
    """Every file or directory mounted from the repository is there."""
    for name, service in merged["services"].items():
        for volume in service.get("volumes", []):
            source = Path(volume.get("source", ""))
            if volume["type"] == "bind" and source.name != "checkpoints":
                assert source.exists(), f"{name}: {source}"
    for config in merged["configs"].values():
        assert Path(config["file"]).is_file()


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_service_matches_image_and_settings(base: dict[str, Any], service: str) -> None:
    """Command, ports, settings and time to stop agree with image and settings file."""
    own = section("reference", service)
    entry = base["services"][service]
    stage = dockerfile_stages()[f"image-{service}"]
    assert entry["build"]["args"] == {"SERVICE": service}
    assert entry["command"] == stage.command("CMD")
    ports = {port(own["listen"]), port(own["metrics_listen"])}
    if service in SERVICES:
        operate = f"TIERCEL_{SERVICES[service].upper()}__OPERATE_LISTEN"
        ports.add(port(entry["environment"][operate]))
    assert {published["target"] for published in entry["ports"]} == ports
    assert entry["configs"] == [{"source": "mesh", "target": f"/opt/tiercel/{CONFIG_IN_IMAGE}"}]
    needed_s = own["lame_duck_s"] + own["grace_s"] + _ROOM_S
    assert _seconds(entry["stop_grace_period"]) >= needed_s


@pytest.mark.parametrize("service", SERVICES)
def test_services_start_protected(
    base: dict[str, Any], service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables and mounted files of the file a service would serve by TLS alone."""
    environ = _environment(base["services"][service])
    kinds: dict[str, Any] = {
        "router-inference": router_settings.Settings,
        "load-monitor": monitor_settings.Settings,
        "trainer": trainer_settings.Settings,
    }
    settings: Any = load_settings(kinds[service], path=config_path("reference"), environ=environ)
    own = getattr(settings, SERVICES[service])
    outgoing = Outgoing(SERVICES[service], settings.mesh, own.insecure_open_to_network)
    access = load_access(
        SERVICES[service],
        own,
        settings.mesh.tls,
        settings.mesh.access,
        takes_keys=service == "router-inference",
        outgoing=outgoing.problems(("load_monitor_address", "trainer_address")),
        monotonic_s=lambda: 0.0,
        log=get_logger("test"),
    )
    assert access.tls is not None
    assert access.authenticator is not None
    assert access.is_split
    assert not own.insecure_open_to_network
    assert settings.mesh.redis_url.startswith(f"rediss://{service}:")


@pytest.mark.parametrize("service", DOORS)
def test_doors_start_protected(base: dict[str, Any], service: str) -> None:
    """They serve by TLS, know keys, and call routers by TLS under a name of their certificate."""
    environ = _environment(base["services"][service])
    settings = load_settings(door_settings.Settings, path=config_path("reference"), environ=environ)
    assert build_door(settings).name == service  # which refuses an address without protection
    assert not settings.openai_door.insecure_open_to_network
    (router,) = settings.openai_door.routers
    assert router.partition(":")[0] in base["services"]
    assert port(router) == port(section("reference", "router-inference")["listen"])


def _environment(entry: dict[str, Any]) -> dict[str, str]:
    """Returns the variables of a service, with files where they are mounted from."""
    mounted = {
        volume["target"]: volume["source"]
        for volume in entry["volumes"]
        if volume["type"] == "bind"
    }
    environ = {}
    for name, value in entry["environment"].items():
        for target, source in mounted.items():
            value = value.replace(target, source)
        environ[name] = value
    return environ


def test_redis_and_triton_serve_by_tls(base: dict[str, Any], merged: dict[str, Any]) -> None:
    """Neither has a port in plain text that prompts or records could come by."""
    words = base["services"]["redis"]["command"][1:]
    redis = {
        flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    assert redis["port"] == "0"
    assert (redis["appendonly"], redis["save"]) == ("yes", "")
    folder = next(
        Path(volume["source"])
        for volume in base["services"]["redis"]["volumes"]
        if volume["target"] == "/run/tls"
    )
    for flag in ("tls-cert-file", "tls-key-file", "tls-ca-cert-file", "aclfile"):
        assert (folder / Path(redis[flag]).name).is_file()
    command = merged["services"]["triton"]["command"]
    assert "--tls-folder=/run/tls" in command or "--grpc-use-ssl-mutual=true" in command
    assert 8000 not in {entry["target"] for entry in merged["services"]["triton"]["ports"]}


def test_triton_answers_under_the_name_of_the_settings(base: dict[str, Any]) -> None:
    """The endpoint's host name is an alias of the Triton container, its ports are its command's."""
    triton = base["services"]["triton"]
    mesh = tomllib.loads(config_path("reference").read_text(encoding="utf-8"))["mesh"]
    flags = dict(flag.removeprefix("--").split("=") for flag in triton["command"])
    assert flags.pop("tls-folder") == "/run/tls"
    for endpoint in mesh["endpoints"]:
        assert endpoint["address"].partition(":")[0] in triton["networks"]["mesh"]["aliases"]
        assert port(endpoint["address"]) == int(flags["grpc-port"])
        assert port(endpoint["metrics_address"]) == int(flags["metrics-port"])
    assert (DEPLOY.parent / flags["repository"]).is_dir()


def test_settings_name_services_of_the_file(base: dict[str, Any]) -> None:
    """Redis, monitor and trainer are reached by the names of their containers."""
    mesh = tomllib.loads(config_path("reference").read_text(encoding="utf-8"))["mesh"]
    hosts = {mesh["load_monitor_address"], mesh["trainer_address"]}
    hosts.add(mesh["redis_url"].removeprefix("redis://").partition("/")[0])
    for address in hosts:
        assert address.partition(":")[0] in base["services"]


def test_gpu_layer_replaces_image_command_and_build() -> None:
    """With the GPU layer last, Triton is the vendor's image on real checkpoints, with a GPU."""
    triton = compose("compose.observability.yaml", "compose.gpu.yaml")["services"]["triton"]
    assert "build" not in triton
    assert "vllm" in triton["image"]
    assert "--model-repository=/models" in triton["command"]
    assert not any(flag.startswith("--repository") for flag in triton["command"])
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_gpu_layer_gives_its_settings_time_to_stop(service: str) -> None:
    """Production's settings let calls run longer than those of the reference tiers."""
    own = section("production", service)
    entry = compose("compose.gpu.yaml")["services"][service]
    needed_s = own["lame_duck_s"] + own["grace_s"] + _ROOM_S
    assert _seconds(entry["stop_grace_period"]) >= needed_s


def test_observability_layer_sends_traces_to_its_collector() -> None:
    """Every service of ours exports to the collector of the same file, Triton too."""
    services = compose("compose.observability.yaml")["services"]
    for name in ALL_SERVICES:
        assert services[name]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"].startswith(
            "http://otel-collector:"
        )
    assert "otel-collector" in services["triton"]["environment"][TRACE_VARIABLE]
    assert services["router-inference"]["environment"].keys() > {"OTEL_EXPORTER_OTLP_ENDPOINT"}


@pytest.mark.parametrize("layer", ["compose.gpu.yaml", "compose.paced.yaml"])
def test_it_does_not_matter_which_layer_comes_first(layer: str) -> None:
    """Observability takes nothing back of what another layer has Triton serve."""
    traced = "compose.observability.yaml"
    assert compose(layer, traced) == compose(traced, layer)


def test_ticket_key_comes_from_the_environment() -> None:
    """The router's ticket key is taken from TIERCEL_TICKET_KEY, not from the file."""
    router = compose(variables={"TIERCEL_TICKET_KEY": "k" * 32})["services"]["router-inference"]
    assert router["environment"]["TIERCEL_ROUTER_INFERENCE__TICKET_KEY"] == "k" * 32


def _seconds(text: str) -> float:
    minutes, _, rest = text.rpartition("m")
    return 60.0 * float(minutes or 0) + float(rest.removesuffix("s") or 0)


def test_paced_layer_serves_what_it_writes(tmp_path: Path) -> None:
    """The one-shot writer's command makes the repository and the models that the settings name."""
    services = compose("compose.paced.yaml")["services"]
    command = services["paced-repository"]["command"]
    written = tmp_path / "paced"
    flags = [
        flag.replace("=/var/lib/tiercel/", f"={tmp_path}/").replace(
            "=profiles/", f"={ROOT}/profiles/"
        )
        for flag in command
    ]
    subprocess.run(
        [sys.executable, *services["paced-repository"]["entrypoint"][1:], *flags],
        check=True, timeout=60, stdout=subprocess.DEVNULL, cwd=ROOT,
    )  # fmt: skip
    repository = _flag(services["triton"], "repository").replace("/var/lib/tiercel", str(tmp_path))
    assert Path(repository).parent == written
    models = {path.name for path in Path(repository).iterdir() if (path / "config.pbtxt").is_file()}
    mesh = tomllib.loads(config_path("paced").read_text(encoding="utf-8"))["mesh"]
    assert {name for entry in mesh["endpoints"] for name in entry["models"].values()} == models
    for volume in (services[name]["volumes"] for name in ("triton", "paced-repository")):
        places = [(entry["source"], entry["target"]) for entry in volume]
        assert ("paced", "/var/lib/tiercel") in places


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_production_models_are_loaded_and_found(where: str) -> None:
    """Settings, --load-model flags and deploy/triton/production name the same models."""
    if where == "compose":
        triton = compose("compose.gpu.yaml")["services"]["triton"]
        flags = triton["command"]
        targets = {volume["target"] for volume in triton["volumes"]}
    else:
        container = pod(rendered("overlays/production"), "triton")["containers"][0]
        flags = container["args"]
        targets = {mount["mountPath"] for mount in container["volumeMounts"]}
    mesh = tomllib.loads(config_path("production").read_text(encoding="utf-8"))["mesh"]
    named = {name for entry in mesh["endpoints"] for name in entry["models"].values()}
    loaded = [flag.partition("=")[2] for flag in flags if flag.startswith("--load-model=")]
    folder = DEPLOY / "triton" / "production"
    assert set(loaded) == named == {path.parent.name for path in folder.glob("*/config.pbtxt")}
    assert "--model-repository=/models" in flags
    engines = [json.loads((folder / name / "1" / "model.json").read_text()) for name in loaded]
    assert {"/models", "/checkpoints"} <= targets
    assert {str(Path(engine["model"]).parent) for engine in engines} == {"/checkpoints"}
    assert sum(engine["gpu_memory_utilization"] for engine in engines) < 0.9


def _flag(service: dict[str, Any], name: str) -> str:
    """Returns the value of a `--name=value` flag of a service's command."""
    flags = dict(flag.removeprefix("--").split("=") for flag in service["command"])
    return str(flags[name])


def test_images_of_others_are_the_same_everywhere() -> None:
    """Redis and the Triton with vLLM are of one version in Compose and on Kubernetes."""
    services = compose("compose.gpu.yaml")["services"]
    for name in ("redis", "triton"):
        (container,) = pod(rendered("overlays/production"), name)["containers"]
        assert container["image"] == services[name]["image"]


def test_own_images_carry_the_projects_version() -> None:
    """Compose and Kubernetes run the version that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    images = {service["image"] for service in compose("compose.paced.yaml")["services"].values()}
    images |= {
        container["image"]
        for name in (*ALL_SERVICES, "triton")
        for container in pod(rendered("base"), name)["containers"]
    }
    own = {image for image in images if image.startswith("tiercel/")}
    assert own == {f"tiercel/{name}:{project['version']}" for name in (*ALL_SERVICES, "triton")}
