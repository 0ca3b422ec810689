"""What worker processes run. Only this module of the service reaches torch and the simulator.

Everything heavy is imported inside the process that needs it: the service itself stays small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.catalog import QualityTable
from router.profile import LatencyProfile
from router.types import Task
from trainer.learning.online.joining import DecisionKey, DecisionRecord, OutcomeRecord
from trainer.learning.online.processes import ProcessRecord

if TYPE_CHECKING:
    from trainer.evaluation.class_gap import ClassGap
    from trainer.evaluation.past import LookBack, PastRequest
    from trainer.learning.online.loop import LoopStatus
    from trainer.simulation.scenarios import Mesh


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSpec:
    """The mesh as the simulator needs it.

    Attributes:
        profile: latency profile of a device.
        quality: quality table.
        tasks: the tasks.
        deadline_s: typical deadline, seconds; simulated requests have their tasks' own.
        devices: tiers placed on each device.
    """

    profile: LatencyProfile
    quality: QualityTable
    tasks: tuple[Task, ...]
    deadline_s: float
    devices: tuple[tuple[str, ...], ...]

    def mesh(self) -> Mesh:
        """Returns it as the simulator's; raises ScenarioError or InvalidFileError."""
        from trainer.simulation.scenarios import Mesh

        return Mesh.build(
            profile=self.profile,
            quality=self.quality,
            tasks=self.tasks,
            devices=self.devices,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineSpec:
    """What an online run is made of.

    Attributes:
        path: file of its state.
        deadline_s: deadline that sets the time scale, seconds.
        patience_s: longest wait for an outcome, seconds.
        min_transitions: transitions before the first step.
        replay_capacity: transitions kept.
        hidden_count: hidden units of a fresh network.
        seed: seed.
        initial: snapshot to start from, None for fresh weights.
    """

    path: Path
    deadline_s: float
    patience_s: float
    min_transitions: int
    replay_capacity: int
    hidden_count: int
    seed: int
    initial: bytes | None


class OnlineJob:
    """Online learning in a process of its own."""

    def __init__(self, spec: OnlineSpec) -> None:
        """Restores or starts the loop; raises SnapshotError."""
        import torch

        from trainer.learning.online.config import online_config
        from trainer.learning.online.loop import OnlineLoop

        torch.set_num_threads(1)
        config = online_config(
            hidden_count=spec.hidden_count,
            replay_capacity=spec.replay_capacity,
            deadline_s=spec.deadline_s,
            patience_s=spec.patience_s,
            order_s=spec.patience_s,
            min_transitions=spec.min_transitions,
            seed=spec.seed,
        )
        self._loop = OnlineLoop(config, path=spec.path, initial=spec.initial)

    def ingest(
        self,
        decisions: Sequence[DecisionRecord],
        outcomes: Sequence[OutcomeRecord],
        processes: Sequence[ProcessRecord],
    ) -> list[DecisionKey]:
        """See `OnlineLoop.ingest`."""
        return self._loop.ingest(decisions, outcomes, processes)

    def learn(self, budget_s: float) -> LoopStatus:
        """Learns for at most `budget_s` seconds and returns where the run stands."""
        self._loop.learn(budget_s, time.monotonic)
        return self._loop.status

    def save(self) -> list[DecisionKey]:
        """See `OnlineLoop.save`."""
        return self._loop.save()

    def drop(self, since_s: float, until_s: float) -> tuple[int, int]:
        """See `OnlineLoop.drop`."""
        return self._loop.drop(since_s, until_s, time.time())

    def snapshot(self, description: dict[str, Any]) -> bytes:
        """See `OnlineLoop.snapshot`."""
        return self._loop.snapshot(description)


class SimulationJob:
    """Training and evaluation in the simulator, in a process of its own."""

    def train(
        self,
        spec: MeshSpec,
        seed: int,
        budget_s: float,
        initial: bytes | None,
        report: Callable[[tuple[float, dict[str, Any]]], None],
    ) -> bytes:
        """Trains a policy and returns its snapshot; reports (share done, facts)."""
        from trainer.learning.offline.config import Budget
        from trainer.learning.offline.training import train_policy

        return train_policy(
            spec.mesh(),
            seed=seed,
            budget=Budget(seconds=budget_s),
            initial=initial,
            progress=lambda share, facts: report((share, facts)),
        )

    def evaluate(
        self, spec: MeshSpec, policies: Sequence[tuple[str, bytes | None]], seeds: Sequence[int]
    ) -> list[dict[str, float]]:
        """Returns mean scores of each (name, snapshot) over the simulated rates and seeds."""
        from trainer.learning.offline.training import evaluate_policy

        mesh = spec.mesh()
        return [evaluate_policy(mesh, name, snapshot, seeds=seeds) for name, snapshot in policies]

    def evaluate_by_class(
        self,
        spec: MeshSpec,
        policies: Sequence[tuple[str, bytes | None]],
        seeds: Sequence[int],
        mix: Mapping[str, float],
    ) -> tuple[list[dict[str, float]], list[list[ClassGap]]]:
        """Returns what `evaluate` does where requests are of several priority classes.

        Beside it, for each policy but the first, how the first does by each class beside that one.
        """
        from trainer.evaluation.by_class import evaluate_by_class

        return evaluate_by_class(spec.mesh(), policies, mix, seeds=seeds)

    def look_back(
        self,
        spec: MeshSpec,
        devices: tuple[tuple[str, ...], ...],
        requests: Sequence[PastRequest],
    ) -> LookBack:
        """Returns what past requests could have earned on devices with these tiers placed."""
        from trainer.evaluation.hindsight import look_back
        from trainer.simulation.setting import OwnMesh

        mesh = replace(spec, devices=devices).mesh()
        # That mesh is for training: its devices differ from what routers know, and its answers from
        # what tasks expect. These do not.
        catalog = replace(mesh.catalog, tasks=spec.tasks)
        own = OwnMesh("past", catalog, spec.quality, spec.profile, devices, mesh.lengths)
        # Far more than the mesh has would be no news.
        return look_back(own.setting(), requests, most_devices=8 * (len(devices) + 1))
