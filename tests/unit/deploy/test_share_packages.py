"""Packages of one environment linked into another: pip never writes through a link."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.unit.deploy.manifests import ROOT

HERE = Path(sysconfig.get_path("purelib"))
PINS = [f"{name}=={version(name)}" for name in ("Jinja2", "MarkupSafe")]


def shared(folder: Path, pins: list[str]) -> Path:
    """Links Jinja2 and what it needs into an environment; returns where its packages lie."""
    there = folder / HERE.relative_to(sys.prefix)
    there.mkdir(parents=True, exist_ok=True)
    (folder / "constraints.txt").write_text("\n".join(pins))
    script = [sys.executable, str(ROOT / ".ci" / "share-packages"), "jinja2"]
    command = [*script, str(folder), str(folder / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return there


def linked(there: Path) -> set[str]:
    """Names of what is linked, without those of metadata."""
    return {entry.name for entry in there.iterdir() if entry.suffix != ".dist-info"}


def test_a_package_and_what_it_needs_are_linked_where_versions_are_the_same(
    tmp_path: Path,
) -> None:
    """They are there as pip left them, metadata too, and import."""
    there = shared(tmp_path, PINS)
    assert linked(there) == {"jinja2", "markupsafe"}
    assert all(entry.is_symlink() for entry in there.iterdir())
    code = "import jinja2, importlib.metadata as m; print(m.version('jinja2'), jinja2.__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(there)}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [version("jinja2"), str(there / "jinja2" / "__init__.py")]


@pytest.mark.parametrize(
    ("pins", "expected"),
    [
        (["Jinja2==1.0", PINS[1]], set()),
        ([PINS[0], "MarkupSafe==1.0"], {"jinja2"}),
        ([PINS[0]], {"jinja2"}),
        ([], set()),
    ],
)
def test_what_the_other_environment_may_replace_is_not_linked(
    tmp_path: Path, pins: list[str], expected: set[str]
) -> None:
    """Pip would take the files of the first environment away with it."""
    assert linked(shared(tmp_path, pins)) == expected


def test_an_environment_of_another_python_is_left_alone(tmp_path: Path) -> None:
    """Its packages lie elsewhere, and ours are not for it."""
    (tmp_path / "constraints.txt").write_text("\n".join(PINS))
    script = [sys.executable, str(ROOT / ".ci" / "share-packages"), "jinja2"]
    command = [*script, str(tmp_path), str(tmp_path / "constraints.txt")]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["constraints.txt"]


def test_old_links_go_and_what_is_no_link_stays(tmp_path: Path) -> None:
    """A package that the other environment has itself is its own."""
    there = shared(tmp_path, PINS)
    (there / "markupsafe").unlink()
    (there / "markupsafe").mkdir()
    (there / "gone").symlink_to(tmp_path / "nowhere")
    shared(tmp_path, PINS)
    assert not (there / "gone").is_symlink()
    assert not (there / "markupsafe").is_symlink()
    assert (there / "jinja2").is_symlink()
    assert (HERE / "markupsafe").is_dir()
