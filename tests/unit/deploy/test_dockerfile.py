"""The Dockerfile: one stage per service, with the right module, ports, user and packages."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from router.compiled import CACHE_VARIABLE
from services.local.triton.server import __main__ as launcher
from services.router_inference import machine_code
from tests.unit.deploy.manifests import (
    ALL_SERVICES,
    CONFIG_IN_IMAGE,
    DEPLOY,
    DOORS,
    ROOT,
    dockerfile_stages,
    port,
    section,
)


@pytest.mark.parametrize("service", ALL_SERVICES)
def test_service_stage_runs_its_module_on_its_ports(service: str) -> None:
    """Entry point, exposed ports and health check name the service's package and settings."""
    stage = dockerfile_stages()[f"image-{service}"]
    own = section("reference", service)
    package = f"services.{ALL_SERVICES[service]}"
    assert stage.command("ENTRYPOINT") == ["python", "-m", package]
    assert stage.command("CMD") == ["--config", CONFIG_IN_IMAGE]
    exposed = {int(number) for number in stage.values("EXPOSE")[0].split()}
    assert exposed == {port(own["listen"]), port(own["metrics_listen"])}
    probe = stage.command("HEALTHCHECK")
    assert probe[:2] == ["python", "-m"]
    assert importlib.util.find_spec(probe[2]) is not None
    page = ["--http", "/health"] if service in DOORS else []
    assert probe[3:] == [f"127.0.0.1:{port(own['listen'])}", *page]


def test_trainer_keeps_compiled_kernels_where_it_may_write() -> None:
    """Its user has no home; numba refuses to compile if its cache can be nowhere."""
    (value,) = dockerfile_stages()["image-trainer"].values("ENV")
    assert value == f"{CACHE_VARIABLE}=/opt/tiercel/build/numba"
    owned = dockerfile_stages()["runtime"].values("RUN")[0]
    assert "install -d -o tiercel -g tiercel /opt/tiercel /opt/tiercel/build" in owned


def test_the_argument_chooses_the_last_stage() -> None:
    """The build argument selects a stage, and there is one for every service and for Triton."""
    stages = dockerfile_stages()
    assert stages["final"].base == "image-${SERVICE}"
    for service in (*ALL_SERVICES, "triton"):
        assert f"image-{service}" in stages


def test_no_stage_ends_as_root() -> None:
    """Every image inherits the unprivileged user and never switches back."""
    stages = dockerfile_stages()
    assert stages["runtime"].values("USER") == ["10001:10001"]
    for name, stage in stages.items():
        if name.startswith("image-"):
            assert stage.base == "runtime"
            assert stage.values("USER") == []


def test_the_router_brings_its_compiled_decision() -> None:
    """It is made where the process will look for it; if that fails, so does the build."""
    stage = dockerfile_stages()["image-router-inference"]
    assert stage.values("ENV") == [f"{CACHE_VARIABLE}=/opt/tiercel/numba"]
    assert stage.values("RUN") == [f"python -m {machine_code.__name__}"]


def test_each_service_installs_the_extra_it_needs() -> None:
    """The monitor gets the wheel alone; who knows callers by tokens gets what checks them."""
    stages = dockerfile_stages()
    light = " ".join(stages["environment-light"].values("RUN"))
    assert "[" not in light
    assert "tiercel[security]" in " ".join(stages["environment-door"].values("RUN"))
    assert "tiercel[compiled,security]" in " ".join(stages["environment-router"].values("RUN"))
    assert "tiercel[trainer]" in " ".join(stages["environment-trainer"].values("RUN"))
    for service, environment in (
        ("router-inference", "router"), ("load-monitor", "light"), ("trainer", "trainer"),
        ("openai-door", "door"),
    ):  # fmt: skip
        copied = stages[f"image-{service}"].values("COPY")
        assert copied == [f"--from=environment-{environment} /opt/tiercel/venv venv"]


def test_the_request_path_has_no_torch() -> None:
    """No dependency of the plain wheel, or of the compiled decision, is a learning library."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[=<>\[ ]", entry)[0] for entry in project["dependencies"]}
    extra = {entry.partition("==")[0] for entry in project["optional-dependencies"]["compiled"]}
    assert extra == {"numba", "scipy"}
    assert names.isdisjoint({"torch", "numba", "scipy", "gymnasium"})


def test_triton_shows_its_log() -> None:
    """What a container logs is what it prints; layers change arguments, not the entry point."""
    stage = dockerfile_stages()["image-triton"]
    assert stage.command("ENTRYPOINT")[3:] == ["--show-log"]
    assert launcher._parse([*stage.command("ENTRYPOINT")[3:], *stage.command("CMD")])[1]


def test_copied_paths_exist_and_are_sent_to_the_builder() -> None:
    """Every path copied from the repository exists and is let through by the ignore file."""
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    let_through = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    for stage in dockerfile_stages().values():
        for arguments in stage.values("COPY"):
            if arguments.startswith("--from="):
                continue
            for source in arguments.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert any(
                    source == entry or source.startswith(f"{entry}/") for entry in let_through
                )


def test_what_the_wheel_packs_is_copied_for_its_build() -> None:
    """A path that is missing there is left out of the image without a word."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wheel = tomllib.loads(text)["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = {
        source
        for arguments in dockerfile_stages()["wheel"].values("COPY")
        for source in arguments.split()[:-1]
    }
    for packed in wheel["only-include"]:
        assert any(Path(packed).is_relative_to(source) for source in copied), packed


def test_images_are_pinned() -> None:
    """The base image names a version."""
    text = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (image,) = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", text, flags=re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", image)
