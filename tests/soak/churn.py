"""Endpoints and policies that come and go while the mesh serves."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import grpc.aio

from services.common.channels import open_channel
from tests.faults.relay import Relay
from tiercel.common.v1 import common_pb2
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

POLICIES = ("price", "greedy", "slackfit", "debt-queue")
_CALL_S = 10.0
_DRAIN_S = 2
_STEP_S, _LEAVE_LIMIT_S = 0.2, 10.0
"""Within so long nobody is connected any more to an endpoint that has left."""
_DRAINED_LIMIT_S = 60.0
"""Within so long an endpoint that is drained has left: what it answers takes a second or two."""


class Churn:
    """Changes one thing after the other; every endpoint it adds has an address of its own."""

    def __init__(self, routers: Sequence[str], monitor: str, trainer: str, triton: str) -> None:
        """Takes addresses; opens channels, so make it inside the event loop."""
        self.endpoint_count = self.policy_count = self.connections_left = 0
        self._triton = triton
        self._channels = [open_channel(each) for each in (monitor, trainer, *routers)]
        self._monitor: Any = monitor_grpc.LoadMonitorServiceStub(self._channels[0])
        self._trainer: Any = trainer_grpc.TrainerServiceStub(self._channels[1])
        self._routers: list[Any] = [
            router_grpc.RouterInferenceServiceStub(each) for each in self._channels[2:]
        ]
        self._policies = itertools.cycle(POLICIES)
        self._relays: list[tuple[str, Relay]] = []

    async def run(self, interval_s: float) -> None:
        """Makes a change every so often, until it is cancelled."""
        for change in itertools.cycle((self.add_endpoint, self.use_policy, self.drop_endpoint,
                                       self.promote_policy)):  # fmt: skip
            await asyncio.sleep(interval_s)
            await change()

    async def add_endpoint(self) -> None:
        """Adds one that is the first endpoint's device behind another address."""
        state = await self._state()
        relay = await Relay(self._triton).start()
        added = common_pb2.Endpoint()
        added.CopyFrom(state.endpoints[0].endpoint)
        self.endpoint_count += 1
        added.endpoint, added.address = f"soak-{self.endpoint_count}", relay.address
        self._relays.append((added.endpoint, relay))
        await self._monitor.AddEndpoint(
            monitor_pb.AddEndpointRequest(endpoint=added), timeout=_CALL_S
        )

    async def drop_endpoint(self) -> None:
        """Drains the oldest that was added, and ends its address when it has left."""
        if not self._relays:
            return
        name, relay = self._relays[0]
        request = monitor_pb.RemoveEndpointRequest(endpoint=name)
        request.drain.FromSeconds(_DRAIN_S)
        if await self._has(name):  # it may be draining since a call that was cut short
            await self._monitor.RemoveEndpoint(request, timeout=_CALL_S)
        try:
            async with asyncio.timeout(_DRAINED_LIMIT_S):
                while await self._has(name):
                    await asyncio.sleep(_STEP_S)
        except TimeoutError:
            raise TimeoutError(f"{name} has not left within {_DRAINED_LIMIT_S:g} s") from None
        for _ in range(int(_LEAVE_LIMIT_S / _STEP_S)):
            if not len(relay):
                break
            await asyncio.sleep(_STEP_S)
        self.connections_left += len(relay)
        self._relays.pop(0)
        await relay.close()

    async def _has(self, name: str) -> bool:
        return any(each.endpoint.endpoint == name for each in (await self._state()).endpoints)

    async def _state(self) -> Any:
        request = monitor_pb.GetSystemStateRequest()
        return (await self._monitor.GetSystemState(request, timeout=_CALL_S)).state

    async def use_policy(self) -> None:
        """Switches each router by itself."""
        request = router_pb.UsePolicyRequest(policy=next(self._policies))
        for router in self._routers:
            await router.UsePolicy(request, timeout=_CALL_S)
        self.policy_count += 1

    async def promote_policy(self) -> None:
        """Switches all of them by way of the trainer and Redis."""
        request = trainer_pb.PromotePolicyRequest(policy=next(self._policies))
        await self._trainer.PromotePolicy(request, timeout=_CALL_S)
        self.policy_count += 1

    async def close(self) -> str:
        """Takes every added endpoint out, and closes the channels; returns why that failed."""
        why = ""
        try:
            while self._relays:
                await self.drop_endpoint()
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            why = f"{error!r:.200}"
        for _, relay in self._relays:
            await relay.close()
        for channel in self._channels:
            await channel.close()
        return why
