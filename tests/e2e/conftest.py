"""Fixtures of the end-to-end tests: one mesh per module, nothing of it left afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh, start_mesh, stop_mesh


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two routers, two paced devices, a trainer; fails if a process outlives it."""
    folder: Path = tmp_path_factory.mktemp("mesh")
    running = start_mesh(folder, "--routers", "2", "--devices", "2")
    left = ["it was never stopped"]
    try:
        yield running
    finally:
        left = stop_mesh(running)
    assert left == []
