"""What a trainer wants tried, as a router reads it."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from router.watch import WatchLimits
from services.common.clock import SystemClock
from services.common.log import get_logger
from services.router_inference.policy.trial import Tried
from services.router_inference.policy.trial_link import TrialLink, tried_of, watched_of
from services.router_inference.policy.watch import NOT_WATCHED, Watched
from tests.fakes.ports import free_port
from tests.waiting import until
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

CANARY = pb.WatchTrialResponse(
    rollout=3,
    stage=pb.POLICY_STAGE_CANARY,
    policy="dqn",
    policy_version="v",
    share=0.1,
    snapshot=b"x",
)


def changed(**fields: Any) -> pb.WatchTrialResponse:
    """Returns a canary with other fields."""
    message = pb.WatchTrialResponse()
    message.CopyFrom(CANARY)
    message.MergeFrom(pb.WatchTrialResponse(**fields))
    return message


def test_a_canary_and_a_shadow_are_read() -> None:
    """Only a canary has a share."""
    canary = tried_of(CANARY)
    assert (canary.rollout, canary.is_canary, canary.share) == (3, True, 0.1)
    assert (canary.policy.name, canary.policy.snapshot) == ("dqn", b"x")
    shadow = tried_of(changed(stage=pb.POLICY_STAGE_SHADOW))
    assert (shadow.rollout, shadow.is_canary, shadow.share) == (3, False, 0.0)


def test_a_switchback_is_read() -> None:
    """Which period it is, who decides in it, and what of it does not count."""
    message = changed(stage=pb.POLICY_STAGE_SWITCHBACK, period=3, decides_all=True)
    message.settle.FromSeconds(10)
    found = tried_of(message)
    assert (found.period, found.decides_all, found.settle_s, found.share) == (3, True, 10.0, 0.0)
    assert (found.is_canary, found.stage) == (True, "switchback")
    assert tried_of(changed(stage=pb.POLICY_STAGE_SWITCHBACK)).rollout == 0


@pytest.mark.parametrize(
    "message",
    [
        pb.WatchTrialResponse(),
        changed(stage=pb.POLICY_STAGE_ACTIVE),
        changed(stage=99),
        changed(share=0.6),
        changed(share=-0.1),
        changed(share=math.nan),
        changed(share=math.inf),
    ],
)
def test_what_is_no_trial_is_nothing(message: pb.WatchTrialResponse) -> None:
    """A stage or a share that is none never decides for anybody."""
    assert tried_of(message).rollout == 0


class Trainer(pb_grpc.TrainerServiceServicer):
    """Sends a canary, and then nothing."""

    def __getattr__(self, name: str) -> Any:
        """Stands for the methods a router never calls."""
        if name.startswith("_"):
            raise AttributeError(name)
        return None

    async def WatchTrial(self, request: Any, context: Any) -> Any:
        """Sends it."""
        yield CANARY
        await asyncio.Event().wait()


class Trial:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.taken: list[Tried] = []
        self.suspended = 0

    def take(self, tried: Tried) -> None:
        """Notes it."""
        self.taken.append(tried)

    def suspend(self) -> None:
        """Notes it."""
        self.suspended += 1


class Watch:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.taken: list[Watched] = []

    def take(self, watched: Watched) -> None:
        """Notes it."""
        self.taken.append(watched)


def order(**fields: Any) -> pb.WatchTrialResponse:
    """Returns what is to be watched, with other fields."""
    usual = {"activation": 7, "miss_limit": 0.05, "error_limit": 0.02}
    return pb.WatchTrialResponse(
        watch=pb.WatchOrder(time_left=Duration(seconds=60), **{**usual, **fields})
    )


def test_what_is_to_be_watched_is_read() -> None:
    """Beside a trial or without one; limits that are none mean nothing."""
    found = watched_of(order())
    assert found == Watched(7, WatchLimits(0.05, 0.02), 60.0)
    wrong = (
        pb.WatchTrialResponse(),
        order(activation=-1),
        order(miss_limit=math.nan),
        order(error_limit=-0.1),
        order(error_limit=math.inf),
    )
    assert {watched_of(each) for each in wrong} == {NOT_WATCHED}


async def served(address: str, servicer: Any) -> grpc.aio.Server:
    """Returns a trainer that listens; with None one of an earlier release."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        pb_grpc.add_TrainerServiceServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    return server


@pytest.mark.parametrize("servicer", [Trainer, None])
async def test_a_trial_rests_while_the_trainer_is_away(servicer: Any) -> None:
    """And where it is of an earlier release, which has no trials."""
    address, trial, watch = f"127.0.0.1:{free_port()}", Trial(), Watch()
    server = await served(address, servicer and servicer.__new__(servicer))
    async with grpc.aio.insecure_channel(address) as channel:
        link = TrialLink(
            channel=channel,
            trial=trial,  # type: ignore[arg-type]
            watch=watch,  # type: ignore[arg-type]
            clock=SystemClock(),
            log=get_logger("test"),
            longest_wait_s=0.1,
        )
        watching = asyncio.create_task(link.watch())
        if servicer is not None:
            await until(lambda: trial.taken, "the canary is taken in")
            assert trial.suspended == 0
            assert watch.taken == [NOT_WATCHED]
            await server.stop(None)
        await until(lambda: trial.suspended, "the trial rests")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    await server.stop(None)
