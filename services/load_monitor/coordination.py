"""What monitors agree on through Redis: who publishes, endpoints, targets, each other's reports.

Roles: the LEADER has the lease and writes its states to Redis. A FOLLOWER serves the leader's
states and hands it the reports it receives. STANDALONE is a monitor without Redis: it serves its
own picture. Nothing here is on the way of a state to a watcher, except on a follower.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.common.clock import Clock
from services.common.errors import DomainError, cut
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.shared_state import SharedState
from services.load_monitor.board import Board
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.convert_state import (
    read_picture,
    read_reports,
    stored_picture,
    stored_reports,
)
from services.load_monitor.loads import NO_ORDER
from services.load_monitor.model import Picture, RouterReport
from services.load_monitor.shared_ratings import SharedRatings
from services.load_monitor.shared_targets import SharedTargets
from services.load_monitor.shared_topology import SharedTopology
from services.load_monitor.targets import TargetOverride
from services.load_monitor.topology import Operation
from services.load_monitor.versions import Versions

LEASE_NAME = "load-monitor"
_LEASE_SHARE = 0.25
_RETRY_S = 0.5
# A follower of the last release hands its reports over far more often.
_LAST_RELEASE_S = 5.0
_LONGEST_PROBLEM_BYTES = 500


class Role(enum.Enum):
    """What this monitor does for the mesh at present."""

    LEADER = "leader"
    FOLLOWER = "follower"
    STANDALONE = "standalone"


class Coordinator:
    """Keeps the lease, endpoints, targets and reports in step with the other monitors.

    Args:
        process_id: Owner of the lease: unlike any other process's, whatever the settings say.
        store: The shared store.
        is_alone: True if no other monitor reads the store: it keeps the endpoint list alone.
        topology: The endpoint list in it.
        targets: The targets in it.
        ratings: What clients said of answers, in it.
        board: This monitor's picture.
        broadcast: Where a follower puts the leader's states.
        versions: Numbers of this monitor's states.
        clock: For the intervals.
        log: For changes of role.
        interval_s: Time between two rounds, seconds.
        lease_ttl_s: Time after which the lease of a dead leader ends, seconds.
        on_redis_publication: Called after each state written to Redis.
    """

    def __init__(
        self,
        *,
        process_id: str,
        store: SharedState,
        is_alone: bool,
        topology: SharedTopology,
        targets: SharedTargets,
        ratings: SharedRatings,
        board: Board,
        broadcast: Broadcast,
        versions: Versions,
        clock: Clock,
        log: Logger,
        interval_s: float,
        lease_ttl_s: float,
        on_redis_publication: Callable[[], None] = lambda: None,
    ) -> None:
        self._process_id = process_id
        self._told = ""
        self._store = store
        self._is_alone = is_alone
        self._topology = topology
        self._targets = targets
        self._ratings = ratings
        self._board = board
        self._broadcast = broadcast
        self._versions = versions
        self._clock = clock
        self._log = log
        self._interval_s = interval_s
        self._lease_ttl_s = lease_ttl_s
        self._on_redis_publication = on_redis_publication
        self._role = Role.STANDALONE
        self._stored_version = 0
        self._served: tuple[str, int] | None = None
        self._lease_due_s = 0.0
        self._good_s = clock.monotonic_s()
        self._had_reports = False
        self._leader_packs = False
        self._by_name_until_s = float("-inf")
        self.store_available: bool | None = None

    @property
    def role(self) -> Role:
        """What this monitor does at present."""
        return self._role

    @property
    def is_publishing(self) -> bool:
        """True if this monitor makes states of its own."""
        return self._role is not Role.FOLLOWER

    async def run(self, on_round: Callable[[], Awaitable[None]]) -> None:
        """Makes rounds until cancelled, calling `on_round` after each that changed availability.

        A Redis that is away is tried every half second.
        """
        while True:
            before = self.store_available
            available = await self.round()
            if self.store_available != before:
                await on_round()
            await self._clock.sleep(self._interval_s if available else _RETRY_S)

    async def round(self) -> bool:
        """Makes one round; returns whether the store answered."""
        try:
            await self._keep_lease()
            if self._role is Role.LEADER:
                await self._lead()
            else:
                await self._follow()
            await self._topology.sync(leads=self._role is Role.LEADER)
            await self._targets.sync()
            await self._ratings.sync(leads=self._role is Role.LEADER)
        except StateUnavailableError as error:
            self._lost(error)
            return False
        self._good_s = self._clock.monotonic_s()
        self._note_store(True)
        return True

    async def change(self, operation: Operation) -> int:
        """Applies a change to the endpoint list, here and in the store; returns its new number.

        Without Redis the change counts here at once and is stored when Redis is back.

        Raises:
            DomainError: What `operation` raises.
            AbortedError: Others kept changing the list at the same time.
        """
        try:
            return await self._topology.change(operation)
        except StateUnavailableError as error:
            self._lost(error)
        return self._topology.change_here(operation)

    async def set_target(self, override: TargetOverride) -> TargetOverride:
        """Takes a target that was set, here and in the store; returns it as it was stamped.

        Without Redis it counts here at once and is stored when Redis is back.
        """
        try:
            await self._targets.exchange()  # its stamp must lie above what the others know
        except StateUnavailableError as error:
            self._lost(error)
        taken = self._targets.put(override)
        try:
            await self._targets.exchange()
        except StateUnavailableError as error:
            self._lost(error)
        return taken

    async def close(self) -> None:
        """Gives the lease back, so that another monitor takes over at once."""
        if self._role is not Role.LEADER:
            return
        try:
            await self._ratings.save()
            await self._store.release_lease(LEASE_NAME, self._process_id)
        except StateUnavailableError as error:
            self._log.warning("lease_not_released", reason=str(error))

    # -- rounds

    async def _keep_lease(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s < self._lease_due_s and self._role is not Role.STANDALONE:
            return
        has_it = await self._store.acquire_lease(LEASE_NAME, self._process_id, self._lease_ttl_s)
        self._lease_due_s = now_s + self._lease_ttl_s * _LEASE_SHARE
        if has_it and self._role is not Role.LEADER:
            await self._stored_picture()
        self._become(Role.LEADER if has_it else Role.FOLLOWER)

    async def _lead(self) -> None:
        if self._is_alone:
            return
        for payload in await self._store.take_peer_reports():
            reports, monitor_id = self._read_reports(payload)
            for report in reports:
                try:
                    self._board.take_report(report, monitor_id=monitor_id)
                except DomainError as error:
                    self._tell("peer_report_refused", error)
            if monitor_id:
                names = {report.router_id for report in reports}
                self._board.aggregator.handed_over(monitor_id, names)
        latest = self._broadcast.latest
        if latest is None or latest.version <= self._stored_version:
            return
        by_name = self._clock.monotonic_s() < self._by_name_until_s
        payload = stored_picture(latest, by_name=by_name, since_s=self._broadcast.age_s)
        if await self._store.publish_system_state(payload, latest.version):
            self._stored_version = latest.version
            self._on_redis_publication()
        else:
            # A former leader's clock was ahead of ours: go on above its last number.
            await self._stored_picture()
            self._board.mark()

    async def _follow(self) -> None:
        reports = self._board.aggregator.open_reports
        if reports or self._had_reports:
            by_name = not self._leader_packs
            payload = stored_reports(
                reports, self._board.order, by_name=by_name, monitor_id=self._process_id
            )
            await self._store.put_peer_reports(self._process_id, payload)
            self._had_reports = bool(reports)
        picture = await self._stored_picture()
        if picture is not None:
            self._serve(picture)

    def _serve(self, picture: Picture) -> None:
        """Serves a state of the leader, under a number of our own where ours are ahead of its.

        They are where this monitor served states of its own while Redis was away: it had counted on
        by its own clock. What is in the store when it begins to follow is older than those.
        """
        before, self._served = self._served, (picture.monitor_id, picture.version)
        latest = self._broadcast.latest
        if latest is not None and picture.version <= latest.version:
            if before in (None, self._served):
                return
            picture = replace(picture, version=self._versions.next())
        # A leader of the last release tells no targets.
        self._broadcast.offer(replace(picture, targets=self._board.targets_in_force()))

    # -- helpers

    def _lost(self, error: StateUnavailableError) -> None:
        """Notes that Redis is away; a follower waits as long as the lease before it goes alone."""
        self._note_store(False, str(error))
        alone_for_s = self._clock.monotonic_s() - self._good_s
        if self._role is Role.LEADER or alone_for_s >= self._lease_ttl_s:
            self._become(Role.STANDALONE)

    def _become(self, role: Role) -> None:
        if role is self._role:
            return
        self._log.info("role", was=self._role.value, now=role.value)
        self._role, self._served = role, None
        self._topology.offer_settings()
        self._board.mark()

    def _note_store(self, available: bool, reason: str = "") -> None:
        if available == self.store_available:
            return
        if available:
            self._log.info("redis_available")
        else:
            self._log.warning("redis_unavailable", reason=reason)
        self.store_available = available

    async def _stored_picture(self) -> Picture | None:
        """Returns the picture in the store, if there is a readable one; counting goes on above."""
        payload = await self._store.load_system_state()
        if payload is None:
            return None
        latest = self._broadcast.latest
        try:
            picture, self._leader_packs = read_picture(
                payload, NO_ORDER if latest is None else latest.loads.order
            )
        except ValueError as error:
            self._tell("stored_state_unreadable", error)
            return None
        self._versions.observe(picture.version)
        return picture

    def _read_reports(self, payload: bytes) -> tuple[list[RouterReport], str]:
        try:
            reports, peer_packs, monitor_id = read_reports(payload, self._board.order)
        except ValueError as error:
            self._tell("peer_reports_unreadable", error)
            return [], ""
        if not peer_packs:
            self._by_name_until_s = self._clock.monotonic_s() + _LAST_RELEASE_S
        return reports, monitor_id

    def _tell(self, event: str, error: Exception) -> None:
        """Logs what is wrong with what others wrote, once: it is met again in every round."""
        problem = cut(str(error), _LONGEST_PROBLEM_BYTES)
        if (told := f"{event} {problem}") != self._told:
            self._told = told
            self._log.error(event, problem=problem)
