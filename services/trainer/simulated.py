"""What a SIMULATED run does: train in the simulator, publish, maybe promote."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from services.common.errors import AbortedError
from services.common.log import Logger
from services.trainer.gate import Gate, GateRefusedError
from services.trainer.jobs import MeshSpec, SimulationJob
from services.trainer.promotion import RoutersRefusedError
from services.trainer.registry import PolicyRegistry
from services.trainer.rollout import RolloutHeldError
from services.trainer.runs import Run
from services.trainer.settings import TrainerSettings
from services.trainer.worker import Worker

_START_S = 120.0
"""Allowance beside the budget for starting, compiling and evaluating, seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTraining:
    """The body of simulated runs.

    Attributes:
        settings: the trainer's settings.
        spec: the mesh to simulate.
        registry: where the result is published.
        gate: judge of what is to be promoted.
        log: log.
    """

    settings: TrainerSettings
    spec: MeshSpec
    registry: PolicyRegistry
    gate: Gate
    log: Logger

    async def __call__(self, run: Run) -> None:
        """Trains for the configured budget, publishes, and promotes if asked and passed."""
        settings = self.settings
        worker = Worker(SimulationJob, (), nice=settings.worker_nice, log=self.log)
        updates: set[asyncio.Task[None]] = set()

        def on_progress(value: tuple[float, dict[str, Any]]) -> None:
            task = asyncio.ensure_future(self._report(run, *value))
            updates.add(task)
            task.add_done_callback(updates.discard)

        try:
            blob = await worker.call(
                "train",
                self.spec,
                run.seed,
                settings.simulated_budget_s,
                None,
                timeout_s=2.0 * settings.simulated_budget_s + _START_S,
                on_progress=on_progress,
            )
        finally:
            await worker.close()
            await asyncio.gather(*updates, return_exceptions=True)
        text = f"simulated, profile {self.spec.profile.name}, seed {run.seed}"
        record = await self.registry.publish(blob, text)
        await run.update(policy_version=record.version)
        if run.promote:
            # What gate or routers refuse is REJECTED in the registry and logged there; the run did
            # what it was asked.
            with suppress(GateRefusedError, RoutersRefusedError, AbortedError, RolloutHeldError):
                await self.gate.promote(self.registry, record, blob, by_hand=False)

    async def _report(self, run: Run, share: float, facts: dict[str, Any]) -> None:
        """Takes over what the trainer reports; facts it does not name stay as they are."""
        known = ("step_count", "transition_count", "loss", "mean_reward", "epsilon")
        changes = {key: facts[key] for key in known if facts.get(key) is not None}
        if "steps_per_second" in facts:
            changes["steps_per_second"] = facts["steps_per_second"]
        left_s = (1.0 - min(1.0, share)) * self.settings.simulated_budget_s
        await run.update(time_left_s=left_s, **changes)
