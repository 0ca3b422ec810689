"""Makes a state whenever something changed, and at least once in a while."""

from __future__ import annotations

from collections.abc import Callable

from services.common.clock import Clock
from services.common.log import Logger
from services.load_monitor.board import Board
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.coordination import Coordinator
from services.load_monitor.model import Picture
from services.load_monitor.versions import Versions

# Longest wait for the first probes: a state that calls every endpoint unknown helps nobody.
_FIRST_PROBES_S = 2.0


class Publisher:
    """Takes pictures of the board and publishes them.

    Args:
        board: What is known.
        broadcast: Where pictures go.
        coordinator: Tells whether this monitor publishes at all.
        versions: Numbers of the pictures.
        clock: For the intervals.
        log: For routers that went silent.
        interval_s: Least time between two states, seconds.
        idle_interval_s: Longest time between two states, seconds.
        on_publication: Called with each picture that was published.
    """

    def __init__(
        self,
        *,
        board: Board,
        broadcast: Broadcast,
        coordinator: Coordinator,
        versions: Versions,
        clock: Clock,
        log: Logger,
        interval_s: float,
        idle_interval_s: float,
        on_publication: Callable[[Picture], None] = lambda _picture: None,
    ) -> None:
        self._board = board
        self._broadcast = broadcast
        self._coordinator = coordinator
        self._versions = versions
        self._clock = clock
        self._log = log
        self._interval_s = interval_s
        self._idle_interval_s = idle_interval_s
        self._on_publication = on_publication
        self._start_s = clock.monotonic_s()
        self._published_s: float | None = None
        self.picture: Picture | None = None

    async def run(self) -> None:
        """Publishes until cancelled."""
        while True:
            self.tick()
            await self._clock.sleep(self._interval_s)

    def tick(self) -> bool:
        """Publishes if it is time to; returns whether it did."""
        for router_id in self._board.expire():
            self._log.info("router_silent", router_id=router_id)
        if not self._coordinator.is_publishing:
            # For the metrics; not numbered, not sent.
            self.picture = self._board.picture(0)
            return False
        if not self._due():
            return False
        picture = self._board.picture(self._versions.next())
        self._published_s = self._clock.monotonic_s()
        self.picture = picture
        self._broadcast.offer(picture)
        self._on_publication(picture)
        return True

    def _due(self) -> bool:
        now_s = self._clock.monotonic_s()
        if self._published_s is None:
            unknown = any(t.is_live is None for t in self._board.trackers.values())
            return not unknown or now_s - self._start_s >= _FIRST_PROBES_S
        return self._board.dirty or now_s - self._published_s >= self._idle_interval_s
