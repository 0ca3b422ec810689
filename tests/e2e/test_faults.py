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
from tests.soak.crowd import CLIENTS, DOORS
from tests.soak.hour import soak_mesh

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.triton,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

QUICK = (
    "redis-kill", "monitor-kill", "trainer-kill", "router-kill", "triton-kill", "router-stop",
    "openai-door-kill",
)  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="mesh")
async def running_mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultMesh]:
    """A mesh that all cases share; its supervisor's words are shown if one fails."""
    folder: Path = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIERCEL_STATE", str(folder))
        async with FaultMesh(Start(doors=True), say=print) as mesh:
            yield mesh


@pytest.mark.parametrize(
    "case", [each for each in CASES if each.name in QUICK], ids=lambda c: c.name
)
async def test_it_ends_as_the_matrix_says(mesh: FaultMesh, case: Case) -> None:
    """Nothing is wrong with a run of the case."""
    run = await run_once(case, mesh, seed=1)
    assert not run.complaints, run


async def test_clients_endpoints_and_policies_come_and_go_without_a_failure(
    mesh: FaultMesh,
) -> None:
    """The quick form of the soak: nobody is connected to endpoints that left, nothing ends."""
    before = mesh.starts()
    run = await soak_mesh(mesh.manifest, 4.0, 15.0, print, window_count=4, change_s=0.3)
    assert run.endpoints >= 1
    assert run.policies >= 1
    assert run.clients > CLIENTS
    assert (run.errors, run.connections_left, run.starts) == ({}, 0, before)
    assert sum(window.on_time for window in run.windows) > 0
    with_tasks = {name for name, held in run.held[-1].items() if "tasks" in held}
    assert with_tasks == {"load-monitor", "trainer", "openai-door", *mesh.router_names}
    assert set(run.doors) == set(DOORS)
