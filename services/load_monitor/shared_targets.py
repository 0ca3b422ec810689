"""The targets set while the mesh runs, as all monitors have them in Redis."""

from __future__ import annotations

from dataclasses import replace

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StoredDataError, VersionMismatchError
from services.common.state.shared_state import SharedState
from services.load_monitor.board import Board
from services.load_monitor.targets import TargetOverride, decode, encode, merged

_SAVE_ATTEMPTS = 5
_SYNC_INTERVAL_S = 0.5
_MOST_PROBLEMS_TOLD = 20


class SharedTargets:
    """Keeps the board's targets and the stored ones in step.

    The newest word on each task counts, so nothing has to be kept for a store that is away: what
    was set meanwhile is merged when it is back.

    Args:
        store: The shared store.
        board: Has this monitor's targets.
        clock: For stamps and the interval.
        log: For stored targets that cannot be read.
    """

    def __init__(self, *, store: SharedState, board: Board, clock: Clock, log: Logger) -> None:
        self._store = store
        self._board = board
        self._clock = clock
        self._log = log
        self._due_s = 0.0

    def put(self, override: TargetOverride) -> TargetOverride:
        """Takes what was set here, stamped above what is known of its task; returns it so."""
        known = self._board.targets.get(override.task)
        if known is not None and known.set_wall_ns >= override.set_wall_ns:
            override = replace(override, set_wall_ns=known.set_wall_ns + 1)
        self._use([override])
        return override

    async def sync(self) -> None:
        """Takes in others' targets and stores the own, now and then.

        Raises:
            StateUnavailableError: The store is away.
        """
        if self._clock.monotonic_s() >= self._due_s:
            await self.exchange()

    async def exchange(self) -> None:
        """Takes in others' targets and stores the own.

        Raises:
            StateUnavailableError: The store is away.
        """
        self._due_s = self._clock.monotonic_s() + _SYNC_INTERVAL_S
        for _attempt in range(_SAVE_ATTEMPTS):
            version, stored = await self._stored()
            self._use(stored)
            own = self._board.targets
            is_stored = bool(version) or not own
            if is_stored and own == merged(stored, (), self._clock.wall_ns()):
                return
            try:
                await self._store.save_targets(encode(own), version + 1, version)
            except VersionMismatchError:
                continue
            return
        # Others keep writing; the next round will do.

    def _use(self, found: list[TargetOverride]) -> None:
        known = self._board.targets.values()
        self._board.use_targets(merged(known, found, self._clock.wall_ns()))

    async def _stored(self) -> tuple[int, list[TargetOverride]]:
        """Returns number and content of what is stored; what cannot be read is set aside."""
        try:
            stored = await self._store.load_targets()
            if stored is None:
                return 0, []
            found, problems = decode(stored[1], self._clock.wall_ns())
        except (StoredDataError, ValueError) as error:
            found, problems = [], [str(error)]
        else:
            if not problems:
                return stored[0], found
        await self._store.set_aside_targets()
        for problem in problems[:_MOST_PROBLEMS_TOLD]:
            self._log.error("stored_targets_set_aside", problem=problem)
        return 0, found
