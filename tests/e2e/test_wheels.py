"""Client and mesh installed from their wheels, far from the checkout, call and serve.

The mesh's environment sees the dependencies that are installed here already, which are gigabytes;
our own packages come from the wheels alone. The client's gets copies of what it declares, and
nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import wheels
from tests.e2e.mesh import Mesh, start_mesh, stop_mesh
from tests.unit.deploy.manifests import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(700)]

# `train` compiles the simulator's code first: a minute, and several where other work is beside it.
COMMAND_LIMIT_S = 400.0

CALLS = """
import importlib.util, sys
from tiercel import Answer, Client, UnknownNameError

for name in ("services", "router", "trainer"):
    assert importlib.util.find_spec(name) is None, name
with Client(sys.argv[1]) as client:
    answer = client.generate("a question", task="piqa", deadline_s=30.0)
    print("generate", answer.on_time, answer.tier)
    *chunks, last = client.generate_stream("a question", task="piqa", deadline_s=30.0)
    print("stream", len(chunks) > 0, isinstance(last, Answer))
    ticket = client.route(task="piqa", prompt_token_count=5)
    client.report_outcome(ticket=ticket.ticket, status="on_time", output_token_count=3)
    print("route", ticket.model_name)
    try:
        client.generate("a question", task="no such task")
    except UnknownNameError as error:
        print("error", error.reason)
"""


@dataclass(frozen=True)
class Installed:
    """Two environments and a folder that is no checkout.

    Attributes:
        client: Interpreter with the client's wheel and its dependencies.
        mesh: Interpreter with both wheels.
        folder: Where commands are called.
    """

    client: Path
    mesh: Path
    folder: Path

    def variables(self) -> dict[str, str]:
        """Environment variables that keep what is made on the way in the folder."""
        return {
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TIERCEL_TRITON_ENV": str(ROOT / ".venv-triton"),
        }

    def tiercel(self, *words: str) -> str:
        """Runs the installed command."""
        command = [str(self.mesh.with_name("tiercel")), *words]
        return wheels.run(command, self.folder, self.variables(), COMMAND_LIMIT_S)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Wheels built from this tree, in new environments."""
    folder = tmp_path_factory.mktemp("wheels")
    client_wheel, mesh_wheel = wheels.build_wheels(folder)
    client = wheels.environment(folder / "client", client_wheel)
    wheels.copy_dependencies(client, "tiercel-client")
    mesh = wheels.environment(folder / "mesh", client_wheel, mesh_wheel)
    wheels.share_dependencies(mesh)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    return Installed(client, mesh, elsewhere)


@pytest.fixture(scope="module")
def mesh(installed: Installed) -> Iterator[Mesh]:
    """The installed mesh on paced tiers, started in a folder that is no checkout."""
    running = start_mesh(
        installed.folder,
        variables={**installed.variables(), "PYTHONPATH": ""},
        program=[str(installed.mesh.with_name("tiercel"))],
        directory=installed.folder,
    )
    try:
        yield running
    finally:
        left = stop_mesh(running)
    assert left == []


def test_packages_come_from_the_wheel(installed: Installed) -> None:
    """Nothing is of the checkout that built it, shipped files are found, studies stay behind."""
    code = (
        "import importlib.util, router, services, tiercel, trainer\n"
        "assert importlib.util.find_spec('trainer.research') is None\n"
        "from router.folders import checkout\n"
        "from trainer.shipped import shipped\n"
        "assert checkout() is None\n"
        "print(*(m.__file__ for m in (router, services, tiercel, trainer)), shipped(), sep='\\n')"
    )
    home = wheels.site_packages(installed.mesh)
    for line in wheels.run([str(installed.mesh), "-c", code], installed.folder).splitlines():
        assert Path(line).is_relative_to(home)


def test_the_client_needs_what_it_declares(installed: Installed) -> None:
    """In an environment with its declared dependencies alone `pip check` finds nothing missing."""
    check = [sys.executable, "-m", "pip", "--python", str(installed.client), "check"]
    assert "No broken requirements" in wheels.run(check, installed.folder)


def test_commands_know_version_and_shipped_names(installed: Installed) -> None:
    """Help, version, and files by their shipped names, from any directory."""
    assert installed.tiercel("--version").startswith("tiercel 0.")
    assert "evaluate" in installed.tiercel("--help")
    assert "--suite" in installed.tiercel("evaluate", "--help")
    assert "tiercel-features" in installed.tiercel("policy", "show", "opt-a100")


def test_the_client_calls_the_installed_mesh(installed: Installed, mesh: Mesh) -> None:
    """Generate, stream, route and report, and an error, from the client's environment."""
    printed = wheels.run([str(installed.client), "-c", CALLS, mesh.routers[0]], installed.folder)
    generate, stream, route, error = printed.splitlines()
    assert generate.startswith("generate True ")
    assert stream == "stream True True"
    assert route.startswith("route gpu0_")
    assert error == "error TASK_NOT_FOUND"


def test_generate_finds_the_mesh_from_another_directory(
    installed: Installed, mesh: Mesh, tmp_path: Path
) -> None:
    """A second command in another folder asks the mesh that runs."""
    command = [str(installed.mesh.with_name("tiercel")), "generate", "x", "--task", "piqa"]
    command += ["--deadline", "30"]
    where = {"TIERCEL_STATE": str(mesh.folder.parents[1])}
    assert wheels.run(command, tmp_path, {**installed.variables(), **where})


def test_train_writes_a_snapshot_in_any_directory(installed: Installed) -> None:
    """One round on shipped files; code is compiled into the user's cache."""
    installed.tiercel(
        "train", "--profile", "reference", "--quality", "reference", "--devices", "1",
        "--deadline-s", "0.2", "--rounds", "1", "--no-answer", "--out", "own.safetensors",
    )  # fmt: skip
    assert (installed.folder / "own.safetensors").is_file()
    assert list((installed.folder / "cache" / "tiercel" / "numba").iterdir())
