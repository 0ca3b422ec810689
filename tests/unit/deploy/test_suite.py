"""The suite itself: unit tests stand where their modules do, waits for real time are listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.unit.deploy.manifests import ROOT

TESTS = ROOT / "tests"
BIG_LINES = 150

SUBJECTS = {
    "trainer/simulation/test_kv_room.py": "simulator and paced tiers keep the same limit",
}
"""Unit test files whose subject is several modules, each with the subject."""

COVERED: dict[str, str] = {}
"""Modules of more than `BIG_LINES` lines without a test file of their own, and what covers each."""


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_unit_test_has_its_module() -> None:
    """`unit/a/test_b.py` is about `a/b.py` or the package `a/b`; `test_main.py` about `__main__`."""
    lost = []
    for path in sorted((TESTS / "unit").rglob("test_*.py")):
        place = path.relative_to(TESTS / "unit")
        name = place.stem.removeprefix("test_")
        folder = ROOT / place.parent
        modules = [folder / f"{name}.py", folder / f"__{name}__.py", folder / name]
        # What lies in deploy/ itself is not Python.
        if place.parent != Path("deploy") and not any(module.exists() for module in modules):
            lost.append(str(place))
    assert sorted(lost) == sorted(SUBJECTS)


def test_every_big_module_has_its_test() -> None:
    """A module of more than `BIG_LINES` lines has a test file of its name, or is listed."""
    missing = []
    for package in ("router", "trainer", "services"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT)
            name = f"test_{place.stem.strip('_')}.py"
            is_big = len(path.read_text(encoding="utf-8").splitlines()) > BIG_LINES
            if (
                is_big
                and "_pb2" not in name
                and not (TESTS / "unit" / place.parent / name).exists()
            ):
                missing.append(str(place))
    assert missing == sorted(COVERED)


def test_covering_tests_use_what_they_cover() -> None:
    """The test listed for a module imports it."""
    for module, test in COVERED.items():
        dotted = module.removesuffix(".py").replace("/", ".")
        assert dotted in _imported(TESTS / test), f"{test} does not import {module}"


def _imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_waits_for_real_time_are_listed() -> None:
    """Whatever sleeps or reads a clock stands in tests/README.md with its reason."""
    text = (TESTS / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\S+)` \| `(\w+)` \|.*\S.* \|$", text, re.MULTILINE)
    found = {entry for path in sorted(TESTS.rglob("*.py")) for entry in _waits(path)}
    assert sorted(found) == sorted(listed)


def _waits(path: Path) -> Iterator[tuple[str, str]]:
    """Yields file and function of each call that sleeps or reads a clock of the machine."""
    place = path.relative_to(TESTS)
    nodes = list(ast.walk(_tree(path)))
    # A loop of virtual time jumps over its sleeps.
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    is_virtual = not names.isdisjoint({"run_virtual", "scenario", "VirtualTimeLoop", "LoopClock"})
    if place.parts[0] == "bench":
        return
    for outer in _tree(path).body:
        for node in ast.walk(outer):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node)
            sleeps = re.match(r"(time|asyncio)\.sleep\((?!0\))", call) and not is_virtual
            if sleeps or re.match(r"time\.(time|monotonic|perf_counter)\(", call):
                yield str(place), getattr(outer, "name", "")
