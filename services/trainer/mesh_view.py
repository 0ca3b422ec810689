"""What the load monitor says of the mesh: its routers, its candidates, who took in which policy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc.aio

from router.quality import RatedTier, Rating
from router.watch import WatchReport
from services.common.clock import Clock
from services.common.log import Logger
from services.trainer.convert import trial_seen, watch_seen
from services.trainer.learned_quality import ratings_in
from services.trainer.rollout_verdicts import TrialSeen
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as pb_grpc
from tiercel.load_monitor.v1.system_state_pb2 import SystemState

Candidate = tuple[str, str]
"""Tier and endpoint."""

Key = TypeVar("Key")

_CALL_S = 2.0
_POLL_S = 1.0
_FRESH_S = 5.0
_LEAST_WIDTH = 64
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class RouterSeen:
    """A router as it reports itself.

    Attributes:
        router_id: its name.
        epoch: start stamp of its process.
        activation: activation of the registry it has taken in, 0 for none.
        refusal: why it refused the policy of that activation; empty if it did not.
        trial: what it has seen of the policy on trial; None if nothing is on trial there.
        watch: what it has seen of the policy that is watched; None if none is there.
    """

    router_id: str
    epoch: int
    activation: int
    refusal: str
    trial: TrialSeen | None = None
    watch: WatchReport | None = None


class MeshView:
    """The newest state and everything seen in earlier ones; knows nothing without a monitor.

    Routers and candidates that are gone stay known: what they wrote down before may still come.
    """

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel | None,
        candidates: Iterable[Candidate],
        clock: Clock,
        log: Logger,
    ) -> None:
        """Takes the monitor's channel, None if there is none, and the configured candidates."""
        self._stub: Any = None if channel is None else pb_grpc.LoadMonitorServiceStub(channel)
        self._clock = clock
        self._log = log
        self._known_routers: dict[tuple[str, int], None] = {}
        self._known_candidates: dict[Candidate, None] = dict.fromkeys(candidates)
        self._first_seen_s = float("inf")
        self._seen_s = float("-inf")
        self._told: set[tuple[str, int, int]] = set()
        self.routers: tuple[RouterSeen, ...] = ()
        self.placement: tuple[tuple[str, ...], ...] = ()
        """Tiers on each device of the newest state; empty before the first."""
        self.profiles: frozenset[str] = frozenset()
        """Names of the profiles that endpoints have of their own."""
        self.ratings: dict[RatedTier, Rating] = {}
        """What clients said of answers, where routers go by it."""
        self.is_reachable = True

    @property
    def has_monitor(self) -> bool:
        """True if there is a monitor to ask."""
        return self._stub is not None

    @property
    def is_fresh(self) -> bool:
        """True if the newest state came within the last seconds."""
        return self._clock.monotonic_s() - self._seen_s <= _FRESH_S

    def knows(self, router_id: str, epoch: int) -> bool:
        """Returns whether a state has shown such a router process."""
        # Workers of a router number their decisions each, by its name with a number of theirs.
        return (router_id.partition("/")[0], epoch) in self._known_routers

    def problem(
        self, router: tuple[str, int], stamp_s: float, candidates: Collection[Candidate]
    ) -> str:
        """Returns why a record cannot be this mesh's, empty if it can.

        Args:
            router: id and epoch of the process that wrote it.
            stamp_s: when it was written, seconds since 1970. What is older than the first state
                may come from routers and endpoints that were gone before.
            candidates: what it chose from.
        """
        most = max(_LEAST_WIDTH, len(self._known_candidates))
        if len(candidates) > most:
            return f"{len(candidates)} candidates, the mesh has at most {most}"
        if stamp_s < self._first_seen_s:
            return ""
        if not self.knows(*router):
            return f"router {router[0][:64]!r} with epoch {router[1]} is none of the mesh's"
        for tier, endpoint in candidates:
            if (tier, endpoint) not in self._known_candidates:
                return f"candidate ({tier[:64]!r}, {endpoint[:64]!r}) is none of the mesh's"
        return ""

    async def run(self) -> None:
        """Keeps the view up to date, for ever."""
        while self._stub is not None:
            await self.refresh()
            await self._clock.sleep(_POLL_S)

    async def refresh(self) -> bool:
        """Asks the monitor once; returns whether it answered."""
        if self._stub is None:
            return False
        try:
            response = await self._stub.GetSystemState(pb.GetSystemStateRequest(), timeout=_CALL_S)
            problem = "" if response is not None else "unreadable answer"
        except grpc.aio.AioRpcError as error:
            problem = error.code().name
        if problem:
            if self.is_reachable:
                self._log.warning("monitor_unreachable", reason=problem)
            self.is_reachable = False
            return False
        self.is_reachable = True
        self.take(response.state)
        return True

    async def watch(self, interval_s: float) -> AsyncIterator[tuple[RouterSeen, ...]]:
        """Yields the routers, asking anew each time, as long as the monitor answers."""
        while await self.refresh():
            yield self.routers
            await self._clock.sleep(interval_s)

    def take(self, state: SystemState) -> None:
        """Takes in a state."""
        self._seen_s = self._clock.monotonic_s()
        self._first_seen_s = min(self._first_seen_s, self._clock.wall_ns() / 1e9)
        self.routers = tuple(
            RouterSeen(
                each.router_id,
                each.epoch,
                each.activation,
                each.policy_refusal[:64],
                trial_seen(each.trial) if each.HasField("trial") else None,
                watch_seen(each.watch) if each.HasField("watch") else None,
            )
            for each in state.routers
        )
        for router in self.routers:
            _remember(self._known_routers, (router.router_id, router.epoch))
            if router.refusal and _told_by(router) not in self._told:
                # Later than a promotion waits, or at the start of a router of another version.
                self._log.warning(
                    "router_refused",
                    router=router.router_id,
                    activation=router.activation,
                    reason=router.refusal,
                )
        self._told = {_told_by(router) for router in self.routers if router.refusal}
        self.ratings = ratings_in(state)
        endpoints = [each.endpoint for each in state.endpoints]
        devices: dict[str, dict[str, None]] = {}
        for endpoint in endpoints:
            tiers = devices.setdefault(endpoint.device or endpoint.endpoint, {})
            tiers |= dict.fromkeys(served.tier for served in endpoint.tiers)
        self.placement = tuple(map(tuple, devices.values()))
        self.profiles = frozenset(each.profile for each in endpoints if each.profile)
        for each in state.endpoints:
            for served in each.endpoint.tiers:
                _remember(self._known_candidates, (served.tier, each.endpoint.endpoint))


def _told_by(router: RouterSeen) -> tuple[str, int, int]:
    """Returns what a refusal is known by once it is logged."""
    return router.router_id, router.epoch, router.activation


def _remember(known: dict[Key, None], key: Key) -> None:
    """Moves a key to the end of what is known; the longest unseen give way."""
    known.pop(key, None)
    known[key] = None
    if len(known) > _MOST_REMEMBERED:
        del known[next(iter(known))]
