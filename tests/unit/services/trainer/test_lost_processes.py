"""Processes that no state of the mesh shows any more."""

from __future__ import annotations

from services.common.log import get_logger
from services.trainer.lost_processes import LostProcesses
from services.trainer.mesh_view import MeshView
from tests.fakes.clock import FakeClock
from tests.unit.services.trainer.entries import seen_state
from trainer.learning.online.processes import ProcessRecord


def test_a_process_that_is_away_for_long_enough_is_lost() -> None:
    """A worker is there as long as its router is; one that comes back is not lost."""
    clock = FakeClock()
    mesh = MeshView(channel=None, candidates=(), clock=clock, log=get_logger("test"))
    lost = LostProcesses(mesh, clock, after_s=10.0)
    known = [("r0/1", 7), ("r1", 7), ("r2", 7)]
    assert lost.find(known) == []  # no state yet
    for routers in (["r0"], ["r0", "r2"], ["r0"]):
        mesh.take(seen_state(*((name, 7) for name in routers)))
        assert lost.find(known) == []
        clock.move(4.0)
    mesh.take(seen_state(("r0", 7)))
    assert lost.find(known) == [ProcessRecord(("r1", 7), is_cut=True)]
    clock.move(60.0)  # the monitor is silent: nobody can tell
    assert lost.find(known) == []
