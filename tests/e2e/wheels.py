"""Builds the two wheels of this tree and puts them into environments of their own."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path

from tests.unit.deploy.manifests import ROOT
from tests.unit.deploy.test_dependencies import closure

LIMIT_S = 120.0
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def build_wheels(folder: Path) -> tuple[Path, Path]:
    """Returns the wheels of client and mesh.

    The client's is built by way of its source distribution, from a copy without generated stubs.
    """
    client = folder / "tree" / "services" / "client"
    shutil.copytree(ROOT / "protos", folder / "tree" / "protos")
    (client / "tiercel").mkdir(parents=True)
    for path in (ROOT / "services" / "client").rglob("*"):
        if path.is_file() and path.parent.name in ("client", "tiercel"):
            shutil.copy2(path, client / path.relative_to(ROOT / "services" / "client"))
    wheels = folder / "wheels"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(wheels)]
    run([*build, str(client)], ROOT)
    run([*build, "--wheel", str(ROOT)], ROOT)
    (client_wheel,) = wheels.glob("tiercel_client-*.whl")
    (mesh_wheel,) = wheels.glob("tiercel-*.whl")
    return client_wheel, mesh_wheel


def environment(folder: Path, *wheels: Path) -> Path:
    """Makes an empty environment with wheels and nothing else; returns its interpreter."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    run([*install, "--no-deps", "--no-index", *map(str, wheels)], folder)
    return python


def site_packages(python: Path) -> Path:
    """Returns the folder of an environment's packages."""
    return python.parent.parent / SITE_PACKAGES.relative_to(sys.prefix)


def copy_dependencies(python: Path, distribution: str) -> None:
    """Copies what a distribution declares, and only that, out of this environment."""
    for name in closure(distribution) - {distribution}:
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                target = site_packages(python) / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(Path(str(file.locate())), target)


def share_dependencies(python: Path) -> None:
    """Lets an environment see this one's packages, behind its own.

    Not ours: they are here by a .pth file, which is not read for a folder that a .pth file names.
    """
    (site_packages(python) / "dependencies.pth").write_text(f"{SITE_PACKAGES}\n")


def run(
    command: list[str],
    directory: Path,
    variables: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> str:
    """Runs a command without what would lead Python to the checkout; returns what it printed."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        cwd=directory,
        env={**ours, **(variables or {})},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
