"""Follows what the trainer has on trial and wants watched; without a trainer there is neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from router.watch import WatchLimits
from services.common.clock import Clock
from services.common.log import Logger
from services.common.times import seconds_of
from services.router_inference.policy.slot import Promoted
from services.router_inference.policy.trial import Trial, Tried
from services.router_inference.policy.watch import NOT_WATCHED, PolicyWatch, Watched
from services.router_inference.reconnect import END_OF_STREAM, reconnecting
from tiercel.trainer.v1 import trainer_service_pb2 as trainer_pb2
from tiercel.trainer.v1 import trainer_service_pb2_grpc as trainer_grpc

_LARGEST_SHARE = 0.5
_NONE = Promoted("", "", b"", b"", 0)
_OLD_TRAINER_S = 60.0
"""Time until a trainer of an earlier release, which has no trials, is asked again."""


class TrialLink:
    """Watches the trial over a trainer's channel."""

    def __init__(
        self,
        *,
        channel: grpc.aio.Channel,
        trial: Trial,
        watch: PolicyWatch,
        clock: Clock,
        log: Logger,
        longest_wait_s: float,
    ) -> None:
        """Takes its parts."""
        self._stub = trainer_grpc.TrainerServiceStub(channel)
        self._trial = trial
        self._watch = watch
        self._clock = clock
        self._log = log
        self._longest_wait_s = longest_wait_s

    async def watch(self) -> None:
        """Takes in trials for ever; while nobody is there to judge one, it rests."""
        await reconnecting(
            session=self._watch_once,
            on_down=lambda _: self._trial.suspend(),
            clock=self._clock,
            longest_wait_s=self._longest_wait_s,
            log=self._log,
            peer="trainer",
        )

    async def _watch_once(self, works: Callable[[], None]) -> None:
        call = self._stub.WatchTrial(trainer_pb2.WatchTrialRequest())
        try:
            while True:
                response: Any = await call.read()
                if response is END_OF_STREAM or response is None:  # None: unreadable
                    return
                works()
                self._trial.take(tried_of(response))
                self._watch.take(watched_of(response))
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._trial.suspend()
            await self._clock.sleep(_OLD_TRAINER_S)
        finally:
            call.cancel()


def watched_of(response: trainer_pb2.WatchTrialResponse) -> Watched:
    """Returns what a trainer wants watched; limits that are none are nothing."""
    order = response.watch
    limits = WatchLimits(order.miss_limit, order.error_limit)
    left_s = seconds_of(order.time_left)
    if order.activation <= 0 or not all(math.isfinite(each) and each >= 0.0 for each in limits):
        return NOT_WATCHED
    return Watched(order.activation, limits, left_s)


def tried_of(response: trainer_pb2.WatchTrialResponse) -> Tried:
    """Returns what a trainer wants tried; a stage or a share that is none is nothing."""
    is_switch = response.stage == trainer_pb2.POLICY_STAGE_SWITCHBACK
    is_canary = response.stage == trainer_pb2.POLICY_STAGE_CANARY
    share = response.share if is_canary else 0.0
    is_known = is_canary or response.stage == trainer_pb2.POLICY_STAGE_SHADOW
    is_known |= is_switch and response.period > 0
    if not is_known or not math.isfinite(share) or not 0.0 <= share <= _LARGEST_SHARE:
        return Tried(0, False, 0.0, _NONE)
    policy = Promoted(
        response.policy,
        response.policy_version,
        response.snapshot,
        response.snapshot_sha256,
        0,
    )
    if not is_switch:
        return Tried(response.rollout, is_canary, share, policy)
    settle_s = max(0.0, seconds_of(response.settle))
    period, decides_all = response.period, response.decides_all
    return Tried(response.rollout, True, 0.0, policy, period, decides_all, settle_s)
