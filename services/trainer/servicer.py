"""The methods of the contract: convert, call, convert."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES, SnapshotError
from services.common.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.trainer import convert
from services.trainer.gate import Gate
from services.trainer.registry import ActivePolicy, PolicyRegistry
from services.trainer.runs import RunBook
from services.trainer.worker import WorkerDiedError, WorkerError
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

SERVICE_NAME = "tiercel.trainer.v1.TrainerService"

_MOST_STEPS = 10_000_000
_LONGEST_NAME = 64
_LONGEST_TEXT = 1_024

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(pb_grpc.TrainerServiceServicer):
    """Answers the RPCs of TrainerService."""

    def __init__(
        self, *, registry: PolicyRegistry, gate: Gate, runs: RunBook, profiles: Sequence[str]
    ) -> None:
        """Takes the registry, its gate, the runs, and the profiles SIMULATED may ask for."""
        self._registry = registry
        self._gate = gate
        self._runs = runs
        self._profiles = tuple(profiles)

    async def StartTraining(
        self, request: pb.StartTrainingRequest, context: Context
    ) -> pb.StartTrainingResponse:
        """Starts a run."""
        mode = convert.mode_from(request.mode)
        if mode is None:
            raise InvalidArgumentError("mode", f"unknown value {request.mode}")
        if not 0 <= request.step_count <= _MOST_STEPS:
            raise InvalidArgumentError(
                "step_count", f"{request.step_count} is out of range", f"0 to {_MOST_STEPS}"
            )
        if request.seed < 0:
            raise InvalidArgumentError("seed", f"{request.seed} is negative", "0 or more")
        if request.profile and request.profile not in self._profiles:
            raise NotFoundError("profile", request.profile[:_LONGEST_NAME], self._profiles)
        run = self._runs.start(
            mode=mode, step_count=request.step_count, seed=request.seed, promote=request.promote
        )
        return pb.StartTrainingResponse(training_id=run.progress.training_id)

    async def GetTraining(
        self, request: pb.GetTrainingRequest, context: Context
    ) -> pb.GetTrainingResponse:
        """Returns a run's progress."""
        run = self._runs.get(request.training_id)
        return pb.GetTrainingResponse(progress=convert.progress_message(run.progress))

    async def WatchTraining(
        self, request: pb.WatchTrainingRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingResponse]:
        """Sends a run's progress until it ends."""
        async for progress in self._runs.get(request.training_id).watch():
            yield pb.WatchTrainingResponse(progress=convert.progress_message(progress))

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        """Lists built-in policies and snapshots."""
        records = await self._registry.policies()
        return pb.ListPoliciesResponse(
            policies=[convert.policy_info(record) for record in records],
            activation=self._registry.activation,
        )

    async def PublishPolicy(
        self, request: pb.PublishPolicyRequest, context: Context
    ) -> pb.PublishPolicyResponse:
        """Puts a snapshot into the registry."""
        _check_length("description", request.description, _LONGEST_TEXT)
        size = len(request.snapshot)
        if not 1 <= size <= MAX_SNAPSHOT_BYTES:
            raise InvalidArgumentError(
                "snapshot", f"has {size} bytes", f"1 to {MAX_SNAPSHOT_BYTES} bytes"
            )
        try:
            record = await self._registry.publish(request.snapshot, request.description)
        except SnapshotError as error:
            raise InvalidArgumentError("snapshot", str(error), reason=error.reason) from error
        found, _ = await self._registry.get(record.policy, record.version)
        return pb.PublishPolicyResponse(policy=convert.policy_info(found))

    async def GetPolicy(
        self, request: pb.GetPolicyRequest, context: Context
    ) -> pb.GetPolicyResponse:
        """Returns a policy and its snapshot."""
        _check_name(request)
        record, snapshot = await self._registry.get(request.policy, request.policy_version)
        return pb.GetPolicyResponse(policy=convert.policy_info(record), snapshot=snapshot)

    async def PromotePolicy(
        self, request: pb.PromotePolicyRequest, context: Context
    ) -> pb.PromotePolicyResponse:
        """Activates a policy."""
        _check_name(request)
        expected = request.expected_activation if request.HasField("expected_activation") else None
        try:
            if request.through_gate:
                active = await self._through_gate(request)
            else:
                active = await self._registry.promote(
                    request.policy, request.policy_version, expected
                )
        except SnapshotError as error:
            raise FailedPreconditionError(str(error), reason=error.reason) from error
        return pb.PromotePolicyResponse(
            active=convert.policy_info(active.record), activation=active.activation
        )

    async def _through_gate(self, request: pb.PromotePolicyRequest) -> ActivePolicy:
        record, snapshot = await self._registry.get(request.policy, request.policy_version)
        if not snapshot:
            raise InvalidArgumentError("through_gate", f"{record.policy} has no snapshot to judge")
        try:
            return await self._gate.promote(self._registry, record, snapshot)
        except (WorkerDiedError, WorkerError) as error:
            raise UnavailableError(
                "GATE_FAILED", f"the gate's simulation failed: {error}"
            ) from error

    async def RollbackPolicy(
        self, request: pb.RollbackPolicyRequest, context: Context
    ) -> pb.RollbackPolicyResponse:
        """Activates the policy before the present one."""
        _check_length("reason", request.reason, _LONGEST_TEXT)
        active = await self._registry.rollback(request.reason)
        return pb.RollbackPolicyResponse(
            active=convert.policy_info(active.record), activation=active.activation
        )

    async def WatchPolicies(
        self, request: pb.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[pb.WatchPoliciesResponse]:
        """Sends the active policy if it is newer than the caller's, then every newer one."""
        if request.after_activation < 0:
            raise InvalidArgumentError(
                "after_activation", f"{request.after_activation} is negative", "0 or more"
            )
        async for active in self._registry.watch(request.after_activation):
            digest = hashlib.sha256(active.snapshot).digest() if active.snapshot else b""
            yield pb.WatchPoliciesResponse(
                activation=active.activation,
                active=convert.policy_info(active.record),
                snapshot=active.snapshot,
                snapshot_sha256=digest,
            )


def _check_name(request: pb.GetPolicyRequest | pb.PromotePolicyRequest) -> None:
    if not request.policy:
        raise InvalidArgumentError("policy", "must not be empty")
    _check_length("policy", request.policy, _LONGEST_NAME)
    _check_length("policy_version", request.policy_version, _LONGEST_NAME)


def _check_length(field: str, text: str, most: int) -> None:
    if len(text) > most:
        raise InvalidArgumentError(field, "is too long", f"{most} characters")
