"""The quick form of the fault matrix: its processes are killed once each, under load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.case import Case, Start
from tests.faults.catalog import CASES
from tests.faults.mesh import FaultMesh
from tests.faults.run import run_once

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.triton,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

QUICK = ("redis-kill", "monitor-kill", "trainer-kill", "router-kill", "triton-kill", "router-stop")


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="mesh")
async def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultMesh]:
    """A mesh that all cases share; its supervisor's words are shown if one fails."""
    folder: Path = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERCEL_STATE", str(folder))
        async with FaultMesh(Start(), say=print) as mesh:
            yield mesh


@pytest.mark.parametrize(
    "case", [each for each in CASES if each.name in QUICK], ids=lambda c: c.name
)
async def test_it_ends_as_the_matrix_says(mesh: FaultMesh, case: Case) -> None:
    """Nothing is wrong with a run of the case."""
    run = await run_once(case, mesh, seed=1)
    assert not run.complaints, run
