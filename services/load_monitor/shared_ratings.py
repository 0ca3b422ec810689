"""What clients said of answers, as all monitors have it in Redis."""

from __future__ import annotations

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StoredDataError, VersionMismatchError
from services.common.state.shared_state import SharedState
from services.load_monitor.board import Board
from services.load_monitor.convert_ratings import kept_ratings, read_kept
from services.load_monitor.model import NO_RATINGS

INTERVAL_S = 5.0
"""Time between two looks: what routers told since is told again to a monitor that starts."""


class SharedRatings:
    """Keeps the board's ratings and the stored ones in step.

    The monitor that leads stores them; the others go on from what it stored. What of each router is
    counted is stored with them, so nothing is lost or counted twice when another one leads.

    Args:
        store: The shared store.
        board: Has this monitor's ratings.
        clock: For the interval.
        log: For stored ratings that cannot be read.
    """

    def __init__(self, *, store: SharedState, board: Board, clock: Clock, log: Logger) -> None:
        self._store = store
        self._board = board
        self._clock = clock
        self._log = log
        self._due_s = 0.0
        self._version = 0
        self._stored = NO_RATINGS
        self._led = False

    async def sync(self, *, leads: bool) -> None:
        """Stores what is new, or takes in what another monitor stored, now and then.

        Raises:
            StateUnavailableError: The store is away.
        """
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s and leads == self._led:
            return
        await self._load()
        self._due_s, self._led = now_s + INTERVAL_S, leads
        if leads:
            await self.save()

    async def save(self) -> None:
        """Stores what is new.

        Raises:
            StateUnavailableError: The store is away.
        """
        ratings = self._board.ratings
        if ratings.table is self._stored:
            return
        table, payload = ratings.table, kept_ratings(ratings.table, ratings.counted())
        try:
            await self._store.save_ratings(payload, self._version + 1, self._version)
        except VersionMismatchError:
            # Another one leads, or the store has lost them: the next look tells.
            self._due_s = 0.0
            return
        self._version, self._stored = self._version + 1, table

    async def _load(self) -> None:
        try:
            stored = await self._store.load_ratings()
            version, payload = (0, b"") if stored is None else stored
            if version == self._version:
                return
            table, counted = read_kept(payload)
        except (StoredDataError, ValueError) as error:
            await self._store.set_aside_ratings()
            self._log.error("stored_ratings_set_aside", problem=str(error))
            version, table, counted = 0, NO_RATINGS, {}
        self._version, self._stored = version, NO_RATINGS
        if version:
            self._board.use_ratings(table, counted)
