"""Whose turn it is: of all trainers at one Redis, one does a thing at a time.

Two that took experience in would share the entries of the stream between them, and each would save,
over the other's, a state that lacks what the other has acknowledged. Two that judged a rollout
would take its steps twice.
"""

from __future__ import annotations

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.shared_state import SharedState

LEASE_NAME = "trainer"
"""Of learning."""
ROLLOUT_LEASE_NAME = "trainer-rollout"
"""Of judging a rollout."""
TTL_S = 5.0
"""Time after which another trainer takes over from one that is gone, seconds."""
_RENEW_S = TTL_S / 4.0


class TurnLostError(Exception):
    """It is another trainer's turn."""


class Turn:
    """A trainer's place in line."""

    def __init__(
        self,
        *,
        store: SharedState,
        owner: str,
        clock: Clock,
        log: Logger,
        name: str = LEASE_NAME,
    ) -> None:
        """Takes where the lease is, its name, and a name that no other process has."""
        self._store = store
        self._name = name
        self._owner = owner
        self._clock = clock
        self._log = log
        self._is_others = False

    async def wait(self) -> None:
        """Returns once it is this trainer's turn."""
        told = False
        while True:
            try:
                await self._acquire()
                return
            except (TurnLostError, StateUnavailableError) as error:
                if not told:
                    self._log.warning("learning_waits", reason=str(error))
                told = True
            await self._clock.sleep(_RENEW_S)

    async def check(self) -> None:
        """Returns if nobody else can have the turn; with the store away nobody can take it.

        Raises:
            TurnLostError: Another trainer has it, or had it when the store was heard last.
        """
        try:
            await self._acquire()
        except StateUnavailableError as error:
            if self._is_others:
                raise TurnLostError(f"it was another trainer's turn: {error}") from error

    async def keep(self) -> None:
        """Extends the turn until cancelled, however long a round takes."""
        while True:
            await self._clock.sleep(_RENEW_S)
            try:
                await self.check()
            except TurnLostError:
                return  # the round under way finds out by itself

    async def end(self) -> None:
        """Gives the turn to whoever waits for it."""
        try:
            await self._store.release_lease(self._name, self._owner)
        except StateUnavailableError:
            return  # it ends by itself

    async def _acquire(self) -> None:
        self._is_others = not await self._store.acquire_lease(self._name, self._owner, TTL_S)
        if self._is_others:
            raise TurnLostError("it is another trainer's turn")
