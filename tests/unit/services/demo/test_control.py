"""What the demo asks of a trainer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from services.demo.control import MeshControl
from services.local.errors import CommandError
from tests.fakes.ports import free_port
from tests.fakes.trainer import FakeTrainer
from tiercel.trainer.v1 import trainer_service_pb2 as pb


class Trainer(FakeTrainer):
    """Says of a run what a test tells it to, and takes one snapshot."""

    def __init__(self, *told: pb.TrainingProgress) -> None:
        super().__init__()
        self.told = told
        self.started: list[pb.StartTrainingRequest] = []

    async def StartTraining(
        self, request: pb.StartTrainingRequest, context: Any
    ) -> pb.StartTrainingResponse:
        """Starts a run."""
        self.started.append(request)
        return pb.StartTrainingResponse(training_id="run")

    async def WatchTraining(
        self, request: pb.WatchTrainingRequest, context: Any
    ) -> AsyncIterator[pb.WatchTrainingResponse]:
        """Tells of it."""
        assert request.training_id == "run"
        for each in self.told:
            yield pb.WatchTrainingResponse(progress=each)

    async def PublishPolicy(
        self, request: pb.PublishPolicyRequest, context: Any
    ) -> pb.PublishPolicyResponse:
        """Takes what is good."""
        if request.snapshot != b"good":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "snapshot: is none")
        return pb.PublishPolicyResponse(policy=pb.PolicyInfo(policy_version="v1"))


def trainer_that_tells(*told: pb.TrainingProgress) -> Trainer:
    """Returns a trainer; what it lacks is unimplemented, and abstract in the stubs only."""
    make: Any = Trainer
    trainer: Trainer = make(*told)
    return trainer


@asynccontextmanager
async def controlled(trainer: Trainer) -> AsyncIterator[MeshControl]:
    """Runs a trainer, and what controls a mesh that has nothing else."""
    nobody = f"127.0.0.1:{free_port()}"
    await trainer.start()
    control = MeshControl(router=nobody, load_monitor=nobody, trainer=trainer.address)
    try:
        yield control
    finally:
        await control.close()
        await trainer.stop()


def progress(state: str, **fields: Any) -> pb.TrainingProgress:
    """Returns a run's progress."""
    return pb.TrainingProgress(state=pb.TrainingState.Value(f"TRAINING_STATE_{state}"), **fields)


async def test_training_is_followed_to_its_end() -> None:
    """Each progress is passed on; the last one has the version."""
    told = (progress("RUNNING"), progress("SUCCEEDED", policy_version="v2"))
    trainer, seen = trainer_that_tells(*told), list[Any]()
    async with controlled(trainer) as control:
        version, last = await control.train(seed=3, limit_s=20.0, on_progress=seen.append)
    assert (version, last, tuple(seen)) == ("v2", told[1], told)
    [request] = trainer.started
    assert (request.mode, request.seed) == (pb.TRAINING_MODE_SIMULATED, 3)


@pytest.mark.parametrize(
    ("told", "says"),
    [((progress("FAILED", error="out of memory"),), "out of memory"), ((), "no progress")],
)
async def test_training_that_failed_says_why(
    told: tuple[pb.TrainingProgress, ...], says: str
) -> None:
    """In one line."""
    async with controlled(trainer_that_tells(*told)) as control:
        with pytest.raises(CommandError, match=says):
            await control.train(seed=1, limit_s=20.0, on_progress=lambda _: None)


async def test_a_snapshot_is_published() -> None:
    """One that the trainer refuses ends the command with the reason."""
    async with controlled(trainer_that_tells()) as control:
        assert await control.publish(b"good") == "v1"
        with pytest.raises(CommandError, match="snapshot: is none"):
            await control.publish(b"bad")
