"""What is known of the rollout, in memory and in the store.

It is stored only in the place of what was read or stored here last. So of two trainers that change
it at once, the second one hears of the first, and one that stood still for a while overwrites
nothing. One caller at a time: `PolicyRegistry` has the lock.

| what stands in the store | what it means here |
|---|---|
| what was read or stored last | nobody has changed it; it may be replaced |
| what was sent without an answer | it had arrived; it may be replaced |
| nothing, or nonsense | the store lost its memory; it gets what is known here |
| anything else | another trainer has changed it: that is taken in, and counts |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from services.common.log import Logger
from services.common.state.policy_store import NotedRollout, PolicyStore, StoredPolicy
from services.trainer.convert import BadRecordError, decode_rollout, encode_rollout
from services.trainer.model import RolloutState

T = TypeVar("T")

_MOST_TRIED = 32
"""Most states on their way to the store, their answers lost, that are remembered."""


class Attempt(Protocol):
    """Asks the store."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Returns its answer, None while it is away."""


class RolloutMirror:
    """Memory and store of the rollout.

    Attributes:
        state: what is known.
        is_stored: True if the store has it as it is here.
    """

    def __init__(self, *, store: PolicyStore, attempt: Attempt, log: Logger) -> None:
        """Takes the store, what asks it, and the log."""
        self.state = RolloutState()
        self.is_stored = True
        self._store = store
        self._attempt = attempt
        self._log = log
        self._stored = b""  # what was read or stored last
        self._tried: deque[bytes] = deque(maxlen=_MOST_TRIED)  # what was sent without an answer

    def noted(self, state: RolloutState, activation: int) -> NotedRollout:
        """Returns what is stored in one step with an activation; `keep` takes it in afterwards."""
        payload = encode_rollout(state)
        self._tried.append(payload)
        return NotedRollout(activation, payload, self._stored)

    async def keep(self, state: RolloutState, policy: StoredPolicy | None = None) -> bool:
        """Takes a state in and stores it, in one step with what is known of a policy.

        Returns:
            False if another trainer has stored something else since: that was taken in instead.
        """
        payload = encode_rollout(state)

        async def put() -> bool:
            return await self._store.put_rollout(payload, self._stored, policy)

        is_put = await self._attempt(put)
        if is_put is False:
            is_put, found = None, await self._attempt(self._found)
            theirs = self._decoded(found) if found and found not in self._tried else None
            if found and theirs is not None:
                self._take(found, theirs)
                return False
            if found is not None:
                # Nothing is there, or nobody's, or what we stored and got no answer for.
                self._stored = found
                is_put = await self._attempt(put)
        self._set(state)
        self.is_stored = bool(is_put)
        if is_put:
            self._stored = payload
            self._tried.clear()
        else:
            self._tried.append(payload)
        return True

    async def pull(self) -> bool:
        """Brings memory and store together; returns whether that changed what is known here."""
        before = self.state
        if not self.is_stored:
            if not await self.keep(before):
                self._log.warning("rollout_overtaken", reason="another trainer has changed it")
            return self.state != before
        found = await self._attempt(self._found)
        if found is None or found == self._stored:
            return False
        state = self._decoded(found) if found else None
        if state is not None:
            self._take(found, state)
        else:
            self._stored = found  # the store lost its memory, or somebody wrote nonsense
            await self.keep(before)
        return self.state != before

    async def restore(self) -> bool:
        """Has the next `pull` give a store that lost its last writes what is known here.

        Returns:
            Whether the store answered.
        """
        found = await self._attempt(self._found)
        if found is None:
            return False
        self._stored, self.is_stored = found, False
        return True

    async def _found(self) -> bytes:
        return await self._store.rollout() or b""

    def _decoded(self, payload: bytes) -> RolloutState | None:
        try:
            return decode_rollout(payload)
        except BadRecordError as error:
            self._log.error("stored_rollout_broken", reason=str(error))
            return None

    def _take(self, payload: bytes, state: RolloutState) -> None:
        """Takes in what another trainer, or this one before, has stored."""
        self._stored, self.is_stored = payload, True
        self._tried.clear()
        self._set(state)

    def _set(self, state: RolloutState) -> None:
        """Makes a state the known one; what changes only beside the rollout is no new revision."""
        before = self.state
        is_same = with_beside(state, before) == before
        self.state = replace(state, revision=before.revision + (not is_same))


def with_beside(state: RolloutState, known: RolloutState) -> RolloutState:
    """Returns a state with what is known beside a rollout: the watch, and the gate's anchor."""
    anchor, version = known.anchor, known.anchor_version
    return replace(state, watch=known.watch, anchor=anchor, anchor_version=version)
