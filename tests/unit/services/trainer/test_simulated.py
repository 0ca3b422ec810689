"""Simulated runs: what the gate or the routers refuse is no failure of the run."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import AbortedError
from services.common.log import get_logger
from services.common.state.policy_store import MemoryPolicyStore
from services.trainer import simulated
from services.trainer.gate import GateRefusedError
from services.trainer.metrics import TrainerMetrics
from services.trainer.model import Mode, RunState
from services.trainer.promotion import RoutersRefusedError
from services.trainer.registry import PolicyRegistry
from services.trainer.rollout import RolloutHeldError
from services.trainer.runs import RunBook
from services.trainer.settings import TrainerSettings
from services.trainer.simulated import SimulatedTraining
from tests.fakes.clock import FakeClock
from tests.unit.services.trainer.test_gate import SPEC
from tests.unit.services.trainer.test_online import FakeGate
from tests.unit.services.trainer.test_registry import snapshot


class FakeWorker:
    """Trains at once."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        """Takes anything."""

    async def call(self, *_arguments: Any, **_options: Any) -> bytes:
        """Returns a snapshot."""
        return snapshot(1)

    async def close(self) -> None:
        """Does nothing."""


@pytest.mark.parametrize(
    "refusal", [GateRefusedError, RoutersRefusedError, AbortedError, RolloutHeldError, None]
)
async def test_a_refusal_is_an_ordinary_event(
    monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    """The run ends well, with its snapshot published."""
    monkeypatch.setattr(simulated, "Worker", FakeWorker)
    log, clock = get_logger("test"), FakeClock()
    gate: Any = FakeGate()
    gate.failure = refusal and refusal("no")
    registry = PolicyRegistry(
        store=MemoryPolicyStore(),
        built_in=("price",),
        clock=clock,
        log=log,
        metrics=TrainerMetrics(CollectorRegistry()),
    )
    body = SimulatedTraining(
        settings=TrainerSettings(), spec=SPEC, registry=registry, gate=gate, log=log
    )
    runs = RunBook(
        clock=clock,
        log=log,
        metrics=TrainerMetrics(CollectorRegistry()),
        body_of=lambda mode: body,
    )
    run = runs.start(mode=Mode.SIMULATED, step_count=0, seed=0, promote=True)
    async for progress in run.watch():
        last = progress
    assert (last.state, last.error) == (RunState.SUCCEEDED, "")
    assert gate.asked == [last.policy_version]
