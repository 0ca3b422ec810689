"""The methods of the contract: convert, call, convert."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc.aio

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES, SnapshotError
from services.common.checks import MAX_NAME_CHARACTERS, MAX_WALL_S, Checks
from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.trainer import convert
from services.trainer.gate import Gate
from services.trainer.model import PolicyRecord, RolloutState
from services.trainer.promotion import Promoter, Promotion
from services.trainer.registry import ActivePolicy, PolicyRegistry
from services.trainer.rollout import Rollouts
from services.trainer.runs import Run, RunBook
from services.trainer.worker import WorkerDiedError, WorkerError
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

SERVICE_NAME = "tiercel.trainer.v1.TrainerService"

_MOST_STEPS = 10_000_000
_MOST_WAITING_LISTED = 32
_LARGEST_INT64 = 2**63 - 1

DropReplay = Callable[[float, float], Awaitable[tuple[int, int]]]
"""Start and end of a span of time to how many transitions were dropped and how many are left."""

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(pb_grpc.TrainerServiceServicer):
    """Answers the RPCs of TrainerService."""

    def __init__(
        self,
        *,
        registry: PolicyRegistry,
        promoter: Promoter,
        gate: Gate,
        rollouts: Rollouts,
        canary_share: float,
        runs: RunBook,
        drop_replay: DropReplay,
        profiles: Sequence[str],
    ) -> None:
        """Takes its parts.

        Args:
            registry: the policies.
            promoter: activates them.
            gate: judges them.
            rollouts: takes them on in steps.
            canary_share: share of the requests that a canary decides.
            runs: training runs.
            drop_replay: drops a span of time (seconds since 1970) from what online learning holds.
            profiles: that SIMULATED may ask for.
        """
        self._drop_replay = drop_replay
        self._registry = registry
        self._promoter = promoter
        self._gate = gate
        self._rollouts = rollouts
        self._canary_share = canary_share
        self._runs = runs
        self._profiles = tuple(profiles)

    async def StartTraining(
        self, request: pb.StartTrainingRequest, context: Context
    ) -> pb.StartTrainingResponse:
        """Starts a run."""
        mode = convert.mode_from(request.mode)
        if mode is None:
            raise InvalidArgumentError("mode", f"unknown value {request.mode}")
        checks = Checks()
        checks.count("step_count", request.step_count, _MOST_STEPS)
        checks.count("seed", request.seed, _LARGEST_INT64)
        checks.text("profile", request.profile, MAX_NAME_CHARACTERS)
        checks.raise_if_any()
        if request.profile and request.profile not in self._profiles:
            raise NotFoundError("profile", request.profile, self._profiles)
        run = self._runs.start(
            mode=mode, step_count=request.step_count, seed=request.seed, promote=request.promote
        )
        return pb.StartTrainingResponse(training_id=run.progress.training_id)

    async def GetTraining(
        self, request: pb.GetTrainingRequest, context: Context
    ) -> pb.GetTrainingResponse:
        """Returns a run's progress."""
        run = self._run(request.training_id)
        return pb.GetTrainingResponse(progress=convert.progress_message(run.progress))

    async def WatchTraining(
        self, request: pb.WatchTrainingRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingResponse]:
        """Sends a run's progress until it ends."""
        async for progress in self._run(request.training_id).watch():
            yield pb.WatchTrainingResponse(progress=convert.progress_message(progress))

    def _run(self, training_id: str) -> Run:
        checks = Checks()
        checks.text("training_id", training_id, MAX_NAME_CHARACTERS)
        checks.raise_if_any()
        return self._runs.get(training_id)

    async def DropReplay(
        self, request: pb.DropReplayRequest, context: Context
    ) -> pb.DropReplayResponse:
        """Drops a span of time from what online learning holds."""
        checks = Checks()
        since_s = checks.moment("since_time", request.since_time)
        until_s = MAX_WALL_S
        if request.HasField("until_time"):
            until_s = checks.moment("until_time", request.until_time)
        checks.require(since_s < until_s, "until_time", "is not after since_time")
        checks.raise_if_any()
        dropped, kept = await self._drop_replay(since_s, until_s)
        return pb.DropReplayResponse(dropped_count=dropped, kept_count=kept)

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: Context
    ) -> pb.ListPoliciesResponse:
        """Lists built-in policies and snapshots."""
        records = await self._registry.policies()
        return pb.ListPoliciesResponse(
            policies=[convert.policy_info(record) for record in records],
            activation=self._registry.activation,
            rollout=self._rollout_info(),
            pin=self._rollouts.pin,
            watch=self._watch_info(),
        )

    def _watch_info(self) -> pb.WatchInfo | None:
        watches = self._rollouts.watches
        if not watches.state.activation:
            return None
        return convert.watch_message(watches.state, watches.seen())

    def _rollout_info(self) -> pb.RolloutInfo | None:
        return _rollout_message(self._registry.rollout, self._rollouts.seen())

    async def PublishPolicy(
        self, request: pb.PublishPolicyRequest, context: Context
    ) -> pb.PublishPolicyResponse:
        """Puts a snapshot into the registry."""
        checks = Checks()
        checks.text("description", request.description, convert.MAX_TEXT_CHARACTERS)
        size = len(request.snapshot)
        fits = 1 <= size <= MAX_SNAPSHOT_BYTES
        limit = f"1 to {MAX_SNAPSHOT_BYTES} bytes"
        checks.require(fits, "snapshot", f"has {size} bytes", limit)
        checks.raise_if_any()
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
        _name_checks(request).raise_if_any()
        record, snapshot = await self._registry.get(request.policy, request.policy_version)
        return pb.GetPolicyResponse(policy=convert.policy_info(record), snapshot=snapshot)

    async def PromotePolicy(
        self, request: pb.PromotePolicyRequest, context: Context
    ) -> pb.PromotePolicyResponse:
        """Activates a policy, or begins its rollout."""
        checks = _name_checks(request)
        expected = request.expected_activation if request.HasField("expected_activation") else None
        checks.count("expected_activation", expected or 0, _LARGEST_INT64)
        both = request.through_gate and request.without_gate
        checks.require(not both, "without_gate", "is set, and through_gate too")
        checks.text("force_reason", request.force_reason, convert.MAX_TEXT_CHARACTERS)
        is_by_hand = request.without_gate or not request.force_reason
        checks.require(is_by_hand, "force_reason", "is set, and without_gate is not")
        both = request.in_steps and request.without_gate
        checks.require(not both, "in_steps", "is set, and without_gate too")
        checks.raise_if_any()
        record, snapshot = await self._registry.get(request.policy, request.policy_version)
        for field in ("through_gate", "in_steps"):
            if getattr(request, field) and not snapshot:
                raise InvalidArgumentError(field, f"{record.policy} has no snapshot to judge")
        if snapshot and not request.without_gate:
            in_steps = request.in_steps if request.HasField("in_steps") else None
            promotion = await self._through_gate(record, snapshot, expected, in_steps)
        else:
            promotion = await self._rollouts.carry_out(
                lambda note: self._promoter.promote(
                    record.policy,
                    record.version,
                    expected,
                    force_reason=request.force_reason,
                    note=note,
                ),
                by_hand=request.without_gate,
            )
        return pb.PromotePolicyResponse(
            active=_active_info(promotion.active),
            activation=promotion.activation,
            using_router_count=len(promotion.using),
            waiting_routers=promotion.waiting[:_MOST_WAITING_LISTED],
            rollout=_rollout_message(promotion.rollout),
            gate_verdict=promotion.verdict,
            in_memory_only=self._registry.is_degraded,
        )

    async def _through_gate(
        self, record: PolicyRecord, snapshot: bytes, expected: int | None, in_steps: bool | None
    ) -> Promotion:
        self._registry.expect(expected)
        if in_steps is not False and self._rollouts.is_paused(record):
            state = await self._rollouts.resume("promoted again")
            return Promotion(await self._registry.active(), rollout=state)
        try:
            return await self._gate.promote(
                self._registry, record, snapshot, by_hand=True, in_steps=in_steps
            )
        except (WorkerDiedError, WorkerError) as error:
            raise UnavailableError(
                "GATE_FAILED", f"the gate's simulation failed: {error}"
            ) from error

    async def RollbackPolicy(
        self, request: pb.RollbackPolicyRequest, context: Context
    ) -> pb.RollbackPolicyResponse:
        """Ends a rollout; without one activates what served before the present policy."""
        _check_reason(request)
        ended = await self._rollouts.end(f"rolled back: {request.reason}".rstrip(": "))
        if ended is not None:
            return pb.RollbackPolicyResponse(
                active=_active_info(await self._registry.active()),
                activation=self._registry.activation,
                ended=convert.rollout_message(ended),
                in_memory_only=self._registry.is_degraded,
            )
        promotion = await self._rollouts.carry_out(
            lambda _note: self._promoter.rollback(request.reason), by_hand=False
        )
        return pb.RollbackPolicyResponse(
            active=_active_info(promotion.active),
            activation=promotion.activation,
            in_memory_only=self._registry.is_degraded,
        )

    async def PauseRollout(
        self, request: pb.PauseRolloutRequest, context: Context
    ) -> pb.PauseRolloutResponse:
        """Pauses the rollout under way."""
        _check_reason(request)
        state = await self._rollouts.pause(request.reason or "by hand")
        return pb.PauseRolloutResponse(
            rollout=convert.rollout_message(state), in_memory_only=self._registry.is_degraded
        )

    async def WatchTrial(
        self, request: pb.WatchTrialRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrialResponse]:
        """Sends what is on trial and what is watched, and every change."""
        async for state, snapshot in self._registry.watch_rollout():
            watches = self._rollouts.watches
            order = convert.watch_order(
                state.watch, watches.plan.limits, watches.left_s(state.watch)
            )
            settle_s = self._rollouts.limits.switch.settle_s
            yield convert.trial_message(state, snapshot, self._canary_share, settle_s, order)

    async def WatchPolicies(
        self, request: pb.WatchPoliciesRequest, context: Context
    ) -> AsyncIterator[pb.WatchPoliciesResponse]:
        """Sends the active policy if it is newer than the caller's, then every newer one."""
        checks = Checks()
        checks.count("after_activation", request.after_activation, _LARGEST_INT64)
        checks.raise_if_any()
        # Activations are rare: without this a router would not know for hours that it is heard.
        await context.send_initial_metadata(())
        async for active in self._registry.watch(request.after_activation):
            digest = hashlib.sha256(active.snapshot).digest() if active.snapshot else b""
            yield pb.WatchPoliciesResponse(
                activation=active.activation,
                active=convert.policy_info(active.record),
                snapshot=active.snapshot,
                snapshot_sha256=digest,
            )


def _active_info(active: ActivePolicy | None) -> pb.PolicyInfo:
    """Returns the message of what is active; without a name it is what routers' settings say."""
    return convert.policy_info(active.record if active else PolicyRecord.built_in(""))


def _rollout_message(state: RolloutState | None, seen: str = "") -> pb.RolloutInfo | None:
    if state is None or not state.number:
        return None
    return convert.rollout_message(state, seen)


def _check_reason(request: pb.RollbackPolicyRequest | pb.PauseRolloutRequest) -> None:
    checks = Checks()
    checks.text("reason", request.reason, convert.MAX_TEXT_CHARACTERS)
    checks.raise_if_any()


def _name_checks(request: pb.GetPolicyRequest | pb.PromotePolicyRequest) -> Checks:
    checks = Checks()
    checks.text("policy", request.policy, MAX_NAME_CHARACTERS, 1)
    checks.text("policy_version", request.policy_version, MAX_NAME_CHARACTERS)
    return checks
