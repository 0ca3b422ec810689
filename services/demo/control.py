"""Asynchronous control of the demo's mesh: switching policies, waiting for quiet, training."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from services.common.channels import open_channel
from services.common.live import LiveFacts, StateTracker, tier_order
from services.common.times import seconds_of
from services.local.calls import explain
from services.local.embedded import EmbeddedMesh
from services.local.errors import CommandError
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb
from tiercel.load_monitor.v1 import load_monitor_service_pb2_grpc as monitor_grpc
from tiercel.router_inference.v1 import router_inference_service_pb2 as router_pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as router_grpc
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

CALL_TIMEOUT_S = 5.0
SWITCH_TIMEOUT_S = 10.0
QUIET_TIMEOUT_S = 20.0
POLL_S = 0.1
OnFacts = Callable[[LiveFacts, tuple[str, ...]], None]


class MeshControl:
    """Open channels to one router, the load monitor and the trainer."""

    def __init__(self, *, router: str, load_monitor: str, trainer: str) -> None:
        """Opens channels lazily; make it inside the running event loop."""
        self._addresses = {"router": router, "load monitor": load_monitor, "trainer": trainer}
        self._channels = {part: open_channel(address) for part, address in self._addresses.items()}
        self._router: Any = router_grpc.RouterInferenceServiceStub(self._channels["router"])
        self._monitor: Any = monitor_grpc.LoadMonitorServiceStub(self._channels["load monitor"])
        self._trainer: Any = trainer_grpc.TrainerServiceStub(self._channels["trainer"])

    @classmethod
    def of(cls, mesh: EmbeddedMesh) -> MeshControl:
        """Returns the control of a mesh that runs: its first router, its monitor, its trainer."""
        return cls(
            router=mesh.router_addresses[0],
            load_monitor=mesh.addresses["load_monitor"],
            trainer=mesh.addresses["trainer"],
        )

    async def close(self) -> None:
        """Closes the channels."""
        for channel in self._channels.values():
            await channel.close()

    async def switch_policy(self, policy: str, version: str = "") -> str:
        """Promotes a policy for the whole mesh and waits until the router decides with it.

        Returns:
            The policy's version in use.

        Raises:
            CommandError: The trainer refused, or the router did not follow in time.
        """
        request = trainer_pb.PromotePolicyRequest(
            policy=policy, policy_version=version, without_gate=True
        )
        try:
            await self._trainer.PromotePolicy(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise explain("trainer", self._addresses["trainer"], error) from None
        end_s = time.monotonic() + SWITCH_TIMEOUT_S
        while time.monotonic() < end_s:
            status = await self._status()
            right = not version or status.policy_version == version
            if status.policy == policy and right and not status.fallback_active:
                return str(status.policy_version)
            await asyncio.sleep(POLL_S)
        raise CommandError(
            f"the router did not take policy {policy} within {SWITCH_TIMEOUT_S:.0f} s"
            f" (it uses {status.policy})"
        )

    async def wait_for_quiet(self, settle_s: float) -> None:
        """Waits until no request is under way, then a little longer, so that rates decay too.

        Raises:
            CommandError: Requests stay under way.
        """
        end_s = time.monotonic() + QUIET_TIMEOUT_S
        while (await self._status()).in_flight_count:
            if time.monotonic() > end_s:
                raise CommandError(f"requests are still under way after {QUIET_TIMEOUT_S:.0f} s")
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(settle_s)

    async def watch(self, on_facts: OnFacts) -> None:
        """Follows the system state until cancelled; an interruption of the stream is waited out."""
        tracker = StateTracker()
        while True:
            try:
                stream = self._monitor.WatchSystemState(monitor_pb.WatchSystemStateRequest())
                async for message in stream:
                    on_facts(tracker.push(message.state), tier_order(message.state))
            except grpc.aio.AioRpcError:
                await asyncio.sleep(1.0)

    async def training(
        self, mode: trainer_pb.TrainingMode.ValueType, *, seed: int, limit_s: float
    ) -> AsyncIterator[Any]:
        """Starts a training run and yields its TrainingProgress, every newer one, until it ends.

        Args:
            mode: A TrainingMode.
            seed: Seed of the run.
            limit_s: Longest time to wait for its end.

        Raises:
            CommandError: The trainer refused, is gone, or the run did not end in time.
        """
        request = trainer_pb.StartTrainingRequest(mode=mode, seed=seed)
        try:
            started = await self._trainer.StartTraining(request, timeout=CALL_TIMEOUT_S)
            watch = trainer_pb.WatchTrainingRequest(training_id=started.training_id)
            async for message in self._trainer.WatchTraining(watch, timeout=limit_s):
                yield message.progress
        except grpc.aio.AioRpcError as error:
            raise explain("trainer", self._addresses["trainer"], error) from None

    async def train(
        self, *, seed: int, limit_s: float, on_progress: Callable[[Any], None]
    ) -> tuple[str, Any]:
        """Has the trainer learn a policy in simulation, on the mesh's measured profile.

        Args:
            seed: Seed of the run.
            limit_s: Longest time to wait for its end.
            on_progress: Gets each TrainingProgress.

        Returns:
            Version of the published snapshot and the last progress.

        Raises:
            CommandError: The run failed or did not end in time.
        """
        last = None
        mode = trainer_pb.TRAINING_MODE_SIMULATED
        async for last in self.training(mode, seed=seed, limit_s=limit_s):
            on_progress(last)
        if last is None or last.state != trainer_pb.TRAINING_STATE_SUCCEEDED:
            why = last.error if last is not None else "no progress was sent"
            raise CommandError(f"training the learned policy failed: {why}")
        return str(last.policy_version), last

    async def publish(self, snapshot: bytes) -> str:
        """Puts a snapshot into the registry, where it may be already; returns its version.

        Raises:
            CommandError: The trainer refused it, or is gone.
        """
        request = trainer_pb.PublishPolicyRequest(snapshot=snapshot)
        try:
            reply = await self._trainer.PublishPolicy(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise explain("trainer", self._addresses["trainer"], error) from None
        return str(reply.policy.policy_version)

    async def _status(self) -> Any:
        try:
            request = router_pb.GetRouterStatusRequest()
            return await self._router.GetRouterStatus(request, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise explain("router", self._addresses["router"], error) from None


def seconds_left(progress: Any) -> float | None:
    """Time left of a training run, None if unknown."""
    return seconds_of(progress.time_left) if progress.HasField("time_left") else None
