"""How several live routers hear of each other in virtual time: their own parts, and the monitor's.

All report at once and all are told at once, as the simulator has it; a real mesh reports whenever
each router's time has come. Homes are equal stretches: those of the monitor follow the traffic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from router.home import Share
from services.load_monitor.aggregator import Aggregator
from services.load_monitor.board import Board
from services.load_monitor.convert import report_from_message
from services.load_monitor.health import HealthRules
from services.load_monitor.model import Picture
from services.load_monitor.router_states import RouterStates, Watcher
from services.load_monitor.topology import Topology
from services.router_inference.view.convert import LoadWriter, StateReader, router_load
from tests.unit.services.router_inference.parts import Rig
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb2
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2


class Exchange:
    """Reports to one monitor, and its states, at fixed times.

    Args:
        rigs: the routers; each has its number in this order as name.
        homes: their stretches of the devices.
        report_s: time between two reports, seconds.
        late_s: time from a report to the state with it, seconds.
    """

    def __init__(
        self, rigs: Sequence[Rig], homes: Sequence[Share], report_s: float, late_s: float
    ) -> None:
        """Starts a monitor that knows the endpoints and no router."""
        clock = rigs[0].clock
        endpoints = rigs[0].core.view.fleet.latest.endpoints
        self._rigs = rigs
        self._homes = homes
        self._report_s = report_s
        self._late_s = late_s
        self._board = Board(
            monitor_id="m",
            clock=clock,
            rules=HealthRules(2, 2, 5.0, 0.1),
            aggregator=Aggregator(clock=clock, silence_s=60.0, max_routers=len(rigs)),
            topology=Topology({each.name: each for each in endpoints}).renumbered(),
        )
        self._states = RouterStates()
        self._streams = [object() for _ in rigs]
        self._watchers = [Watcher(f"r{rank}", 1 + rank) for rank in range(len(rigs))]
        self._readers = [StateReader(f"r{rank}", 1 + rank) for rank in range(len(rigs))]

    def plan(self, until_s: float) -> None:
        """Sets the timers of all reports before a time, from 0 on."""
        loop = asyncio.get_running_loop()
        for number in range(1 + int(until_s / self._report_s)):
            loop.call_at(number * self._report_s, partial(self._report, 1 + number))

    def _report(self, sequence: int) -> None:
        """Takes every router's report, and the picture that all are told when it has come."""
        for rank, stream in enumerate(self._streams):
            report = report_from_message(self._message(rank, sequence))
            self._board.take_report(report, stream)
        picture = self._board.picture(sequence)
        loop = asyncio.get_running_loop()
        loop.call_at(loop.time() + self._late_s, partial(self._tell, picture))

    def _message(self, rank: int, sequence: int) -> state_pb2.RouterLoad:
        core, clock = self._rigs[rank].core, self._rigs[rank].clock
        return router_load(
            router_id=f"r{rank}",
            epoch=1 + rank,
            sequence=sequence,
            view=core.view,
            counts=core.counts,
            policy=core.slot.name,
            policy_version=core.slot.version,
            activation=0,
            policy_refusal="",
            attainments=core.attainments.read(),
            latencies={},
            tells_tasks=False,
            target_pressure=core.hold.pressure(),
            trial=None,
            watch=None,
            learns_quality=False,
            ratings={},
            loads=LoadWriter(),
            packs=True,
            now_s=clock.monotonic_s(),
            now_ns=clock.wall_ns(),
        )

    def _tell(self, picture: Picture) -> None:
        """Hands a picture to every router."""
        now_s = asyncio.get_running_loop().time()
        for rank, rig in enumerate(self._rigs):
            others = self._states.state_for(self._watchers[rank], picture, self._late_s)
            response = monitor_pb2.WatchSystemStateResponse(others=others)
            seen = self._readers[rank].read(response)
            rig.core.view.apply(replace(seen, home=self._homes[rank]), now_s)
