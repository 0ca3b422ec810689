"""Training a policy for one mesh in a minute, and scoring policies in the simulator.

The loop around `improvement.py`: a budget of time or of rounds, progress, checkpoints, and a final
evaluation beside the baselines on seeds used for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from router.catalog import QualityTable
from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.table import make_policy
from router.profile import LatencyProfile
from router.types import Task
from trainer.learning.offline.episodes import ImprovementConfig
from trainer.learning.offline.paired_learner import PairedConfig
from trainer.learning.offline.policy_iteration import TEST_SEEDS, Improvement, score
from trainer.simulation.scenarios import Mesh, evaluation_scenarios
from trainer.simulation.simulate import PolicySpec
from trainer.simulation.workload import Lengths

Progress = Callable[[float, dict[str, Any]], None]

CHECKPOINT_INTERVAL_S = 15.0
EVALUATION_SHARE = 0.12
"""Share of the budget kept for the final evaluation."""


def train_policy(
    *,
    profile: LatencyProfile,
    quality: QualityTable,
    tasks: Sequence[Task],
    deadline_s: float,
    devices: int | Sequence[Sequence[str]],
    seed: int,
    budget_s: float,
    progress: Progress | None = None,
    max_rate_rps: float | None = None,
    initial_snapshot: bytes | None = None,
    lengths: Lengths | None = None,
    episode_requests: int = 2_000,
    checkpoint: Path | None = None,
    rounds: int | None = None,
    config: ImprovementConfig | None = None,
    paired: PairedConfig | None = None,
) -> bytes:
    """Trains a policy for one mesh and returns its snapshot, evaluation included.

    Args:
        profile: latency profile of a device, tiers from lowest quality to highest.
        quality: quality table.
        tasks: the tasks.
        deadline_s: deadline, seconds.
        devices: number of devices with every tier, or the tiers of each device.
        seed: of everything drawn; the machine's speed decides how many rounds fit the budget.
        budget_s: seconds to train and evaluate, compiling not counted.
        progress: called with the share done and facts, at least every few seconds.
        max_rate_rps: highest rate to train for; None: 0.55 of what the smallest tier can carry.
        initial_snapshot: weights to start from.
        lengths: distribution of lengths; None: OPT's setting or short texts, by the profile's name.
        episode_requests: requests per training episode, about.
        checkpoint: file the run's state is kept in; a run that was killed goes on from it, and it
            is deleted when the run is complete. None: no checkpoint.
        rounds: rounds to do instead of what the budget allows: the result is then a function of
            the arguments alone, whatever the machine's speed.
        config: how the run learns; None: as shipped policies were.
        paired: how the network is fitted; None: as shipped policies were.

    Raises:
        CheckpointError: the checkpoint is damaged, of another run, or cannot be written.
        ScenarioError: the mesh cannot be simulated.
        SnapshotError: `initial_snapshot` is damaged or has another schema.
    """
    torch.set_num_threads(1)
    mesh = Mesh.build(
        profile=profile,
        quality=quality,
        tasks=tasks,
        deadline_s=deadline_s,
        devices=devices,
        max_rate_rps=max_rate_rps,
        lengths=lengths,
    )
    report = progress or (lambda _share, _facts: None)
    report(0.0, {"phase": "compile"})
    run = Improvement(
        mesh,
        seed=seed,
        initial=initial_snapshot,
        episode_requests=episode_requests,
        config=config,
        paired=paired,
    )
    run.warm_up()
    used_s = run.restore(checkpoint)
    start_s = time.monotonic() - used_s
    saved_s = time.monotonic()
    train_s = budget_s * (1.0 - EVALUATION_SHARE)
    # The share of the time is a guess at the share of the work where rounds limit the run.
    has_search = run.learning_from_s > 0.0 or run.searches
    searched = run.config.search_share if has_search else 0.0
    if run.searches:
        for share in run.search(train_s, rounds):
            elapsed_s = time.monotonic() - start_s
            if checkpoint is not None:
                run.save(checkpoint, elapsed_s)
            report(
                (1.0 - EVALUATION_SHARE) * searched * share,
                {**run.facts(elapsed_s), "phase": "search"},
            )
        run.learning_from_s = time.monotonic() - start_s
    while (done := run.done(time.monotonic() - start_s, train_s, rounds)) < 1.0:
        run.round(done)
        elapsed_s = time.monotonic() - start_s
        if checkpoint is not None and time.monotonic() - saved_s > CHECKPOINT_INTERVAL_S:
            run.save(checkpoint, elapsed_s)
            saved_s = time.monotonic()
        share = searched + (1.0 - searched) * run.done(elapsed_s, train_s, rounds)
        report((1.0 - EVALUATION_SHARE) * share, run.facts(elapsed_s))
    evaluation = run.evaluate()
    report(1.0, {**run.facts(time.monotonic() - start_s), "phase": "done", **evaluation})
    blob = run.snapshot(evaluation)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return blob


def evaluate_policy(
    *,
    profile: LatencyProfile,
    quality: QualityTable,
    tasks: Sequence[Task],
    deadline_s: float,
    devices: int | Sequence[Sequence[str]],
    policy: str,
    snapshot: bytes | None = None,
    seeds: Sequence[int] = TEST_SEEDS,
    max_rate_rps: float | None = None,
    lengths: Lengths | None = None,
) -> dict[str, float]:
    """Returns mean performance and availability of a policy over rates and bursts of one mesh.

    Raises:
        UnknownPolicyError: unknown name.
        SnapshotError: a damaged snapshot.
    """
    mesh = Mesh.build(
        profile=profile,
        quality=quality,
        tasks=tasks,
        deadline_s=deadline_s,
        devices=devices,
        max_rate_rps=max_rate_rps,
        lengths=lengths,
    )
    if snapshot is not None:
        spec = PolicySpec.of(
            make_policy("dqn", mesh.catalog, snapshot=load_snapshot(snapshot, SCHEMA))
        )
    else:
        spec = PolicySpec.of(make_policy(policy, mesh.catalog))
    return score(spec, evaluation_scenarios(mesh, seeds, requests=800))
