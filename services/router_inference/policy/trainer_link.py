"""Follows what the trainer promotes; without a trainer, reads the registry in Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc.aio

from services.common.clock import Clock
from services.common.log import Logger
from services.common.state.errors import StateUnavailableError
from services.common.state.policy_store import PolicyStore
from services.router_inference.health_notes import (
    POLICY_UNAVAILABLE,
    TRAINER_UNREACHABLE,
    HealthNotes,
)
from services.router_inference.policy.slot import PolicySlot, Promoted
from services.router_inference.reconnect import END_OF_STREAM, reconnecting
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb2
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc


class PolicyLink:
    """Watches activations over a trainer's channel; without one, only the registry is read."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel | None,
        store: PolicyStore | None,
        slot: PolicySlot,
        notes: HealthNotes,
        clock: Clock,
        log: Logger,
        longest_wait_s: float,
    ) -> None:
        """Takes its parts."""
        self._stub = None if channel is None else trainer_grpc.TrainerServiceStub(channel)
        self._store = store
        self._slot = slot
        self._notes = notes
        self._clock = clock
        self._log = log
        self._longest_wait_s = longest_wait_s

    async def watch(self) -> None:
        """Takes in activations for ever."""
        if self._stub is None:
            return
        await reconnecting(
            session=self._watch_once,
            on_down=lambda reason: self._notes.set(TRAINER_UNREACHABLE, True, reason),
            clock=self._clock,
            longest_wait_s=self._longest_wait_s,
            log=self._log,
            peer="trainer",
        )

    async def read_registry(self) -> None:
        """Takes the active policy from the registry once, as soon as the store answers."""
        store = self._store
        while store is not None and self._slot.activation == 0:
            try:
                active = await store.active()
                if active is None:
                    return
                found = await store.get(active.name, active.version)
            except StateUnavailableError:
                await self._clock.sleep(self._longest_wait_s)
                continue
            snapshot = (found[1] if found else None) or b""
            # The trainer may have spoken while the store was asked.
            if self._slot.activation < active.activation:
                self.take(Promoted(active.name, active.version, snapshot, b"", active.activation))
            return

    async def _watch_once(self, works: Callable[[], None]) -> None:
        assert self._stub is not None
        request = trainer_pb2.WatchPoliciesRequest(after_activation=self._slot.activation)
        call = self._stub.WatchPolicies(request)
        try:
            # Activations are rare: reaching the peer is what shows that the link works.
            await call.wait_for_connection()
            works()
            self._notes.set(TRAINER_UNREACHABLE, False)
            while True:
                response: Any = await call.read()
                if response is END_OF_STREAM or response is None:  # None: unreadable
                    return
                active = response.active
                self.take(
                    Promoted(
                        active.policy,
                        active.policy_version,
                        response.snapshot,
                        response.snapshot_sha256,
                        response.activation,
                    )
                )
        finally:
            call.cancel()

    def take(self, promoted: Promoted) -> None:
        """Uses what was promoted, unless it is what was taken last."""
        if promoted.activation == self._slot.activation:
            return
        # The trainer's order is the order: a lower number comes from a registry that starts anew.
        if promoted.name:
            self._slot.promote(promoted)
        else:
            self._slot.withdraw(promoted.activation)
        self._notes.set(POLICY_UNAVAILABLE, self._slot.is_waiting, self._slot.wanted)
