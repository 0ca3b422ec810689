"""A mesh in folders with an odd name answers; killed, it leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.faults.up_kills import kills
from tests.unit.deploy.manifests import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(900)]

ODD = "a ü'b;c"


def test_in_odd_folders_it_answers_and_killed_it_leaves_nothing(tmp_path: Path) -> None:
    """Serving, and while it starts; nobody tells the rest of the kill. The next one serves."""
    state, directory = tmp_path / f"{ODD} state", tmp_path / ODD
    state.mkdir()
    directory.mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "services" / "client")])
    found = list(kills(3, state, seed=1, directory=directory, variables={"PYTHONPATH": path}))
    assert [kill.left for kill in found] == [[], [], []]
    assert found[0].is_serving
    assert found[-1].is_serving
    assert found[0].below > 5
