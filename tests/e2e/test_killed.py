"""A mesh in folders with an odd name answers; killed, it leaves nothing behind."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.mesh import STOP_LIMIT_S, start_mesh
from tests.unit.deploy.manifests import ROOT
from tests.waiting import LIMIT_S, until_sync
from tiercel import Client

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(600)]

ODD = "a ü'b;c"


def test_in_odd_folders_it_answers_and_killed_it_leaves_nothing(tmp_path: Path) -> None:
    """State and working directory have blanks and quotes; nobody tells the rest of the kill."""
    state, directory = tmp_path / f"{ODD} state", tmp_path / ODD
    state.mkdir()
    directory.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "services" / "client")])
    mesh = start_mesh(state, directory=directory, variables={"PYTHONPATH": path})
    below = mesh.descendants()
    try:
        assert len(below) > len(mesh.routers)
        with Client(mesh.routers[0]) as client:
            answer = client.generate("hello", task="piqa", deadline_s=LIMIT_S)
        assert answer.text
    finally:
        mesh.process.kill()
        mesh.process.wait()
        try:
            until_sync(lambda: not _alive(below), "the mesh is gone", STOP_LIMIT_S)
        finally:
            for each in _alive(below):
                each.kill()


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Returns those that have not ended; in a container nobody may wait for the ended ones."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
