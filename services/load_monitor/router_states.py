"""What a router that watches is sent: the endpoints where they changed, and the others' load.

What is the same for all routers is made once per picture; what differs are three arrays each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from services.common.convert import message_of_endpoint
from services.common.times import duration_of
from services.load_monitor.convert_ratings import messages_of_table
from services.load_monitor.convert_state import HEALTH_TO_MESSAGE, packed_loads
from services.load_monitor.convert_targets import message_of_targets
from services.load_monitor.loads import NO_ORDER, CandidateOrder
from services.load_monitor.model import (
    NO_RATINGS,
    EndpointView,
    Picture,
    RatingTable,
    ToldTasks,
)
from services.load_monitor.others import OthersSums
from services.load_monitor.shares import Shares
from services.load_monitor.targets import TargetOverride
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

RATINGS_S = 1.0
"""Least time between two states with ratings, as a rule: routers tell theirs as often."""

_Endpoints = tuple[state_pb2.EndpointState, ...]


class _Known(NamedTuple):
    """An endpoint as last seen, what of it routers are told, and the message that tells it."""

    view: EndpointView
    facts: tuple[object, ...]
    message: state_pb2.EndpointState


@dataclass(slots=True)
class Watcher:
    """A router that watches, and what it was told.

    Args:
        router_id: Its name.
        epoch: Of its process.
        topology_version: Number of the list it was told last; 0: none yet.
        order: Of that list's candidates.
        endpoints: The endpoints as it was told them.
        targets: The targets as it was told them; None: not yet.
        ratings: The mesh's ratings as it was told them, and those of its own in them; None for
            these: none of its reports was counted.
        ratings_wall_ns: When the state was published that told them, nanoseconds since 1970.
    """

    router_id: str
    epoch: int
    topology_version: int = 0
    order: CandidateOrder = NO_ORDER
    endpoints: _Endpoints = ()
    targets: tuple[TargetOverride, ...] | None = None
    ratings: tuple[RatingTable, RatingTable | None] = (NO_RATINGS, None)
    ratings_wall_ns: int = 0


class RouterStates:
    """Makes the states that routers are sent."""

    def __init__(self) -> None:
        self._picture: Picture | None = None
        self._endpoints: _Endpoints = ()
        self._known: dict[str, _Known] = {}
        self._compared: tuple[_Endpoints, _Endpoints] = ((), ())
        self._changed: _Endpoints = ()
        self._shares = Shares()
        self._others = OthersSums()
        self._table: RatingTable = NO_RATINGS
        self._mesh_ratings = state_pb2.MeshRatings()

    def state_for(
        self, watcher: Watcher, picture: Picture, age_s: float = 0.0
    ) -> state_pb2.OtherRoutersState:
        """Returns what a router is sent of a picture, and notes that it was told.

        Args:
            watcher: The router.
            picture: The picture.
            age_s: How old that is, seconds.
        """
        endpoints = self._endpoints_of(picture)
        version, order = picture.topology_version, picture.loads.order
        # Monitors that were apart may have numbered different lists alike.
        is_whole_list = watcher.topology_version != version or watcher.order is not order
        told = endpoints if is_whole_list else self._changes(watcher.endpoints, endpoints)
        watcher.topology_version, watcher.order, watcher.endpoints = version, order, endpoints
        has_new_targets = watcher.targets != picture.targets
        watcher.targets = picture.targets
        load_LC = picture.loads.total_LC
        own = picture.loads.own(watcher.router_id, watcher.epoch)
        if own is not None:
            load_LC = load_LC - own[1]
        ratings = self._ratings_for(watcher, picture, None if own is None else own[0].tasks)
        home = None
        if own is not None:
            share = self._shares.of(picture)[watcher.router_id]
            home = state_pb2.HomeShare(start=share.start, end=share.end)
        others = self._others.of(picture, age_s, None if own is None else watcher.router_id)
        return state_pb2.OtherRoutersState(
            version=picture.version,
            topology_version=version,
            is_whole_list=is_whole_list,
            endpoints=told,
            loads=packed_loads(load_LC),
            own_sequence=0 if own is None else own[0].sequence,
            others_arrival_rate_rps=others.rate_rps,
            arrival_rate_long_rps=picture.arrival_rate_long_rps,
            targets=message_of_targets(picture.targets) if has_new_targets else None,
            home=home,
            others_age=None if others.age_s is None else duration_of(others.age_s),
            others_arrival_rate_long_rps=others.rate_long_rps,
            ratings=ratings,
        )

    def _endpoints_of(self, picture: Picture) -> _Endpoints:
        """Returns the endpoints' messages; those, and the tuple, that did not change stay."""
        if picture is not self._picture:
            self._picture = picture
            self._known = {view.spec.name: self._made(view) for view in picture.endpoints}
            endpoints = tuple(known.message for known in self._known.values())
            if not _same(endpoints, self._endpoints):
                self._endpoints = endpoints
        return self._endpoints

    def _made(self, view: EndpointView) -> _Known:
        known = self._known.get(view.spec.name)
        if known is not None and known.view is view:
            return known
        ready = tuple(gauge.ready for gauge in view.gauges)
        # Mappings are equal whatever their order, which here says what the loads belong to.
        tiers = tuple(view.spec.models)
        facts = view.spec, tiers, view.health, view.ramp_weight, ready, view.reason
        if known is not None and known.facts == facts:
            return _Known(view, facts, known.message)
        message = state_pb2.EndpointState(
            endpoint=message_of_endpoint(view.spec),
            health=HEALTH_TO_MESSAGE[view.health],
            ramp_weight=view.ramp_weight,
            gauges=[
                state_pb2.TierGauges(tier=gauge.tier, ready=gauge.ready) for gauge in view.gauges
            ],
            reason=view.reason,
        )
        return _Known(view, facts, message)

    def _changes(self, told: _Endpoints, now: _Endpoints) -> _Endpoints:
        """Returns the endpoints that are not as told; most watchers were told the same."""
        if told is now:
            return ()
        if self._compared[0] is not told or self._compared[1] is not now:
            self._compared = told, now
            known = {id(message) for message in told}
            self._changed = tuple(message for message in now if id(message) not in known)
        return self._changed

    def _ratings_for(
        self, watcher: Watcher, picture: Picture, own: ToldTasks | None
    ) -> state_pb2.MeshRatings | None:
        """Returns what a router is told of ratings, and notes that it was; None: it is told none.

        Args:
            watcher: The router.
            picture: The picture.
            own: What the router told of tasks itself; None if nothing of it is counted.
        """
        is_soon = abs(picture.publish_wall_ns - watcher.ratings_wall_ns) < RATINGS_S * 1e9
        if is_soon and (own is None) == (watcher.ratings[1] is None):
            return None
        now = picture.ratings, None if own is None else own.table
        if now == watcher.ratings or not picture.ratings:
            return None
        watcher.ratings, watcher.ratings_wall_ns = now, picture.publish_wall_ns
        if self._table is not picture.ratings:
            self._table = picture.ratings
            self._mesh_ratings = state_pb2.MeshRatings(tasks=messages_of_table(self._table))
        told = state_pb2.MeshRatings()
        told.CopyFrom(self._mesh_ratings)
        if own is not None:
            # As it came: to write hundreds of numbers anew for each router would take too long.
            told.own_tasks.MergeFrom(state_pb2.RouterLoad.FromString(own.ratings).task_ratings)
        return told


def _same(one: _Endpoints, other: _Endpoints) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
