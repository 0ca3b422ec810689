"""The software bill of materials names what is pinned, all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.deploy.manifests import ROOT

FILES = ("constraints.txt", "triton-constraints.txt")


def run(constraints: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Runs the script."""
    command = [sys.executable, str(ROOT / ".ci" / "sbom"), str(constraints), str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def written(constraints: Path, out: Path) -> dict[str, Any]:
    """Returns the bill of a file of pins."""
    done = run(constraints, out)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return document


@pytest.mark.parametrize("name", FILES)
def test_every_pin_is_a_component(name: str, tmp_path: Path) -> None:
    """Name, version and package URL, as the file pins them; each of them hangs on the product."""
    source = ROOT / "requirements" / name
    document = written(source, tmp_path / "bill.json")
    lines = [line.partition("#")[0].strip() for line in source.read_text().splitlines()]
    pins = [Requirement(line) for line in lines if line]
    expected = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in pins}
    parts = document["components"]
    assert {part["name"]: part["version"] for part in parts} == expected
    for part in parts:
        assert part["purl"].startswith(f"pkg:pypi/{part['name']}@")
    (root,) = document["dependencies"]
    assert root["ref"] == document["metadata"]["component"]["bom-ref"]
    assert root["dependsOn"] == [part["bom-ref"] for part in parts]
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")


def test_the_same_pins_give_the_same_bytes(tmp_path: Path) -> None:
    """A bill changes when a pin does, and not otherwise."""
    pins = tmp_path / "pins.txt"
    bills = []
    for text in ("b==1\na==2.0+cpu # why\n", "a==2.0+cpu\nb==1\n", "a==2.1\nb==1\n"):
        pins.write_text(text)
        bills.append(written(pins, tmp_path / "bill.json"))
    assert bills[0] == bills[1]
    assert bills[2]["serialNumber"] != bills[0]["serialNumber"]
    assert bills[0]["components"][0]["purl"] == "pkg:pypi/a@2.0%2Bcpu"


@pytest.mark.parametrize("line", ["a>=1", "a", "-r other.txt", "a==1; python_version > '3'"])
def test_what_is_no_pin_ends_it(line: str, tmp_path: Path) -> None:
    """A bill that leaves something out is none."""
    pins = tmp_path / "pins.txt"
    pins.write_text(f"b==1\n{line}\n")
    done = run(pins, tmp_path / "bill.json")
    assert done.returncode == 1
    assert done.stderr.startswith("sbom: line 2: expected NAME==VERSION")
    assert not (tmp_path / "bill.json").exists()


def test_the_build_writes_both_bills() -> None:
    """`make wheel` leaves them beside the wheels."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = text.partition("\nwheel:")[2].partition("\n\n")[0]
    for name in FILES:
        assert f".ci/sbom requirements/{name}" in rule
