"""What a router sees when it decides: its fleet, the load on it, the traffic.

All three hold what this router knows by itself, and what the load monitor's last state adds.
Without a fresh state the ledger and the own breakers are all there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from router.bound import Bind
from router.catalog import Catalog
from router.desk import Desk
from router.explanation import Inputs
from router.fleet import EndpointSpec, Fleet
from router.home import WHOLE
from router.profile import LatencyProfile
from services.router_inference.view.fleet import FleetView
from services.router_inference.view.load import LoadView
from services.router_inference.view.seen import SeenState
from services.router_inference.view.traffic import TrafficView
from services.router_inference.workers.siblings import NoSiblings


class View:
    """The three views of one router process, kept in step; owned by one event loop."""

    def __init__(
        self,
        *,
        fleet: FleetView,
        siblings: NoSiblings,
        state_max_age_s: float,
        homes: bool,
        rng: np.random.Generator,
        bind: Bind,
        reserve: float,
        now_s: float,
    ) -> None:
        """Starts without a state.

        Args:
            fleet: the candidates.
            siblings: the other workers of this router.
            state_max_age_s: age above which a state is not used, seconds.
            homes: whether to stay at home where the monitor gives one.
            rng: the policies' dice.
            bind: how decisions are bound.
            reserve: share of the last minute's highest rate that room is kept for.
            now_s: monotonic seconds.
        """
        self.fleet = fleet
        self.load = LoadView(fleet.latest, siblings)
        self.traffic = TrafficView(now_s, siblings)
        self.traffic.reserve = reserve
        self.is_alone = True
        """True without a fresh state: own ledger and breakers decide alone."""
        self._rng = rng
        self._bind = bind
        self._at: Fleet | None = None
        self._state_max_age_s = state_max_age_s
        self._homes = homes
        self._state_s: float | None = None

    def configure(
        self,
        catalog: Catalog,
        endpoints: Sequence[EndpointSpec],
        profiles: Mapping[str, LatencyProfile],
    ) -> None:
        """Takes what other settings say of the fleet; see `FleetView.configure`."""
        self.fleet.configure(catalog, endpoints, profiles)
        self.load.forget(self.fleet.latest)

    def apply(self, state: SeenState, now_s: float) -> None:
        """Takes in a newer system state."""
        self._state_s = now_s
        self.is_alone = False
        self.fleet.apply(state)
        self.fleet.move_home(state.home if self._homes else WHOLE)
        self.load.apply(state.candidates, state.others_LC, self.fleet.latest)
        told_s = now_s - state.others_age_s
        self.traffic.apply(state.other_rate_rps, state.rate_long_rps, state.others_long_rps, told_s)

    def current_fleet(self, now_s: float) -> Fleet:
        """Returns the fleet as of now; forgets a state that is too old, so look here first."""
        age_s = self.state_age_s(now_s)
        if not self.is_alone and age_s is not None and age_s > self._state_max_age_s:
            self.is_alone = True
            self.fleet.forget_health()
            self.load.forget(self.fleet.latest)
            self.traffic.forget()
        return self.fleet.current(now_s)

    def desk(self, now_s: float) -> Desk:
        """Returns where to decide from, its arrays as of now; good until the next `apply`."""
        fleet = self.current_fleet(now_s)
        if fleet is not self._at:
            self._at, load = fleet, self.load
            self._desk = Desk(
                fleet.arrays, load.own_LC, load.others_LC, load.seen_LC, self._rng, self._bind
            )
        self.load.refresh()
        return self._desk

    def inputs(self, desk: Desk) -> Inputs:
        """Returns what the decision just taken on a desk rested on, to keep."""
        fleet, load = self.fleet, self.load
        return Inputs(
            fleet.as_profiled,
            fleet.slowness_D,
            fleet.availability_C,
            fleet.home_C,
            load.own_LC.copy(),
            load.heard_LC,
            desk.rule,
            desk.asked,
        )

    def state_age_s(self, now_s: float) -> float | None:
        """Returns the age of the newest state, seconds; None if there never was one."""
        return None if self._state_s is None else now_s - self._state_s
