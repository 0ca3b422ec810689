"""Router processes that are gone from the mesh without having said that they end."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.clock import Clock
from services.trainer.mesh_view import MeshView
from trainer.learning.online.processes import ProcessKey, ProcessRecord


class LostProcesses:
    """Watches for processes that no state of the mesh has shown for a while."""

    def __init__(self, mesh: MeshView, clock: Clock, *, after_s: float) -> None:
        """Takes the mesh, and for how long a process must be away, seconds."""
        self._mesh = mesh
        self._clock = clock
        self._after_s = after_s
        self._away_since_s: dict[ProcessKey, float] = {}

    def find(self, open_processes: Iterable[ProcessKey]) -> list[ProcessRecord]:
        """Returns those of some processes that are lost.

        Without a monitor, or while it does not answer, none is.

        Args:
            open_processes: processes of which more may come.
        """
        if not self._mesh.is_fresh:
            self._away_since_s.clear()
            return []
        live = {(router.router_id, router.epoch) for router in self._mesh.routers}
        now_s = self._clock.monotonic_s()
        # Workers of a router write by its name with a number of theirs.
        away = [
            process
            for process in open_processes
            if (process[0].partition("/")[0], process[1]) not in live
        ]
        self._away_since_s = {each: self._away_since_s.get(each, now_s) for each in away}
        return [
            ProcessRecord(process, is_cut=True)
            for process, since_s in self._away_since_s.items()
            if now_s - since_s >= self._after_s
        ]
