"""The endpoint list as all monitors have it in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from router.fleet import EndpointSpec
from services.common.access.plain_text import Refusal
from services.common.clock import Clock
from services.common.errors import AbortedError, DomainError
from services.common.log import Logger
from services.common.state.errors import StoredDataError, VersionMismatchError
from services.common.state.shared_state import SharedState
from services.load_monitor.board import Board
from services.load_monitor.topology import (
    Changes,
    Operation,
    Topology,
    decode_changes,
    encode_changes,
)

_CHANGE_ATTEMPTS = 5
_SYNC_INTERVAL_S = 0.5
_MOST_PENDING = 1_000
_MOST_PROBLEMS_TOLD = 20


class SharedTopology:
    """Keeps the board's endpoint list and the stored one in step.

    A method that needs a store that is away raises StateUnavailableError.

    Args:
        store: The shared store.
        board: Has this monitor's list.
        clock: For the interval.
        log: For endpoints that left and lists that cannot be read.
        refusal: Tells by field and address why an endpoint may not have it.
    """

    def __init__(
        self,
        *,
        store: SharedState,
        board: Board,
        clock: Clock,
        log: Logger,
        refusal: Callable[[str, str], Refusal | None],
    ) -> None:
        self._refusal = refusal
        self._store = store
        self._board = board
        self._clock = clock
        self._log = log
        self._due_s = 0.0
        self._pending: list[Operation] = []
        self._settings_are_new = True
        self._lock = asyncio.Lock()

    def use_settings(self, configured: Mapping[str, EndpointSpec], *, is_alone: bool) -> None:
        """Takes the endpoints of other settings; those changed while running stay changed.

        With a store they get a number once this monitor leads; alone it gives them one at once.
        """
        topology = Topology(configured, self._board.topology.changes)
        self._board.use_topology(topology.renumbered() if is_alone else topology)
        self.offer_settings()

    def offer_settings(self) -> None:
        """Makes the settings a new list, if they differ, once this monitor leads."""
        self._settings_are_new = True

    def change_here(self, operation: Operation) -> int:
        """Applies a change to this monitor's list alone, to be stored when the store is back."""
        topology = operation(self._board.topology)
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(operation)
        self._board.use_topology(topology)
        return topology.version

    async def sync(self, *, leads: bool) -> None:
        """Takes in others' changes and stores pending ones; the leader drops what is drained."""
        now_s = self._clock.monotonic_s()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _SYNC_INTERVAL_S
        pending = list(self._pending)
        try:
            # Settings that differ from the leader's (a rolling change of the file) become a new
            # list when their monitor leads, not before: two monitors would overrule each other.
            renumber = self._settings_are_new and leads
            await self.change(Topology.renumbered if renumber else _unchanged, pending)
        except AbortedError:
            return  # the others are busy with the list; the next round will do
        self._settings_are_new = self._settings_are_new and not renumber
        # Changes that came while this one was under way stay for the next round.
        del self._pending[: len(pending)]
        if leads:
            for name in self._board.drained():
                await self._drop(name)

    async def change(self, operation: Operation, before: list[Operation] | None = None) -> int:
        """Applies changes to the stored list and to this one; returns the list's number.

        Args:
            operation: The change; what it raises is raised.
            before: Changes accepted earlier, to be applied first.

        Raises:
            AbortedError: Others kept changing the list at the same time.
        """
        async with self._lock:
            return await self._change(operation, before or [])

    async def _change(self, operation: Operation, before: list[Operation]) -> int:
        for _attempt in range(_CHANGE_ATTEMPTS):
            expected, changes = await self._stored()
            base = self._board.topology
            if changes is not None:
                base = base.adopting(changes)
            topology = base
            for earlier in before:
                topology = _applied(earlier, topology)
            topology = operation(topology).following(self._board.topology)
            if expected == 0 or topology.changes != base.changes:
                try:
                    payload = encode_changes(topology.changes)
                    await self._store.save_topology(payload, topology.version, expected)
                except VersionMismatchError:
                    continue
            self._board.use_topology(topology)
            return topology.version
        raise AbortedError("the endpoint list is being changed by others; try again")

    async def _drop(self, name: str) -> None:
        try:
            await self.change(lambda topology: topology.drop(name))
        except AbortedError:
            return  # still drained in the next round
        self._log.info("endpoint_left", endpoint=name)

    async def _stored(self) -> tuple[int, Changes | None]:
        """Returns number and content of the stored list; 0 if there is none to go on from.

        What is wrong is set aside: with a broken list the own one is stored anew, with broken
        endpoints the others.
        """
        changes: Changes | None = None
        try:
            stored = await self._store.load_topology()
            if stored is None:
                return 0, None
            changes, problems = decode_changes(stored[1], self._refusal)
        except (StoredDataError, ValueError) as error:
            problems = [str(error)]
        else:
            if not problems:
                return stored[0], changes
        await self._store.set_aside_topology()
        for problem in problems[:_MOST_PROBLEMS_TOLD]:
            self._log.error("stored_topology_set_aside", problem=problem)
        return 0, changes


def _unchanged(topology: Topology) -> Topology:
    return topology


def _applied(operation: Operation, topology: Topology) -> Topology:
    """Applies a change that was accepted earlier; what it can no longer do is left out."""
    try:
        return operation(topology)
    except DomainError:
        # Somebody else made the same change, or took the endpoint out, while Redis was away here.
        return topology
