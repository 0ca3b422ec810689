"""A trainer in process that promotes what a test tells it to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from tests.fakes.ports import free_port
from tiercel.trainer.v1 import trainer_service_pb2 as pb2
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb2_grpc


class FakeTrainer:
    """Serves WatchPolicies only."""

    def __getattr__(self, name: str) -> Any:
        """Stands for the methods a router never calls."""
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    def __init__(self) -> None:
        self.port = free_port()
        self._active: pb2.WatchPoliciesResponse | None = None
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None

    @property
    def address(self) -> str:
        """Its address; stays the same over stop and start."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> FakeTrainer:
        """Listens."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        pb2_grpc.add_TrainerServiceServicer_to_server(self, self._server)  # type: ignore[arg-type]
        self._server.add_insecure_port(self.address)
        await self._server.start()
        return self

    async def stop(self) -> None:
        """Goes away."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def promote(self, policy: str, activation: int, snapshot: bytes = b"") -> None:
        """Activates a policy."""
        digest = hashlib.sha256(snapshot).digest() if snapshot else b""
        self._active = pb2.WatchPoliciesResponse(
            activation=activation,
            active=pb2.PolicyInfo(policy=policy),
            snapshot=snapshot,
            snapshot_sha256=digest,
        )
        async with self._changed:
            self._changed.notify_all()

    async def WatchPolicies(
        self, request: pb2.WatchPoliciesRequest, context: Any
    ) -> AsyncIterator[pb2.WatchPoliciesResponse]:
        """Sends every newer activation; that it is heard it says at once, as a trainer does."""
        await context.send_initial_metadata(())
        sent = request.after_activation
        while True:
            active = self._active
            if active is not None and active.activation > sent:
                sent = active.activation
                yield active
                continue
            async with self._changed:
                await self._changed.wait()
