"""Training a policy for one mesh, and scoring policies on it.

What `policy_iteration.py` needs around it: time, progress, a checkpoint, and a final evaluation
beside the baselines on seeds used for nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.table import make_policy
from trainer.learning.checkpoint import (
    CheckpointError,
    load_checkpoint,
    remove_leftovers,
    save_checkpoint,
)
from trainer.learning.offline.config import Budget, OfflineConfig
from trainer.learning.offline.policy_iteration import SEARCH, PolicyIteration
from trainer.learning.offline.validation import score
from trainer.simulation.scenarios import Mesh, Scenario, evaluation_scenarios, held
from trainer.simulation.simulate import PolicySpec

Progress = Callable[[float, dict[str, Any]], None]
"""Told the share done and facts, at least every few seconds."""

TEST_SEEDS = (800_001, 800_002, 800_003)
CHECKPOINT_INTERVAL_S = 15.0
TRAINING_SHARE = 0.88
"""Share of the budget to learn in; the rest is for the final evaluation."""


def train_policy(
    mesh: Mesh,
    config: OfflineConfig | None = None,
    *,
    seed: int,
    budget: Budget,
    initial: bytes | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda _share, _facts: None,
) -> bytes:
    """Trains a policy for one mesh and returns its snapshot, evaluation included.

    Args:
        mesh: the mesh.
        config: how the run learns; None: as shipped policies were.
        seed: of everything drawn; by time the machine's speed decides how many rounds there are.
        budget: what limits training and evaluation together.
        initial: snapshot to start from; None: afresh.
        checkpoint: file the run's state is kept in; a run that was killed goes on from it. It is
            for the caller to delete once what is returned is safe. None: no checkpoint.
        progress: told how far the run is.

    Raises:
        CheckpointError: the checkpoint is damaged, of another run, or cannot be written.
        SnapshotError: `initial` is damaged or has another schema.
    """
    torch.set_num_threads(1)
    progress(0.0, {"phase": "compile"})
    run = PolicyIteration(mesh, config, seed=seed, initial=initial)
    run.warm_up()
    used_s = 0.0 if checkpoint is None else _restore(run, checkpoint)
    start_s = saved_s = time.monotonic()

    def elapsed_s() -> float:
        return used_s + time.monotonic() - start_s

    for phase, share in run.steps(
        replace(budget, seconds=TRAINING_SHARE * budget.seconds), elapsed_s
    ):
        is_due = phase == SEARCH or time.monotonic() - saved_s > CHECKPOINT_INTERVAL_S
        if checkpoint is not None and is_due:
            _save(run, checkpoint, elapsed_s())
            saved_s = time.monotonic()
        progress(TRAINING_SHARE * share, {"phase": phase, **run.facts(elapsed_s())})
    evaluation = _evaluate(mesh, run)
    progress(1.0, {"phase": "done", **run.facts(elapsed_s()), **evaluation})
    return run.snapshot(evaluation)


def evaluate_policy(
    mesh: Mesh, policy: str, snapshot: bytes | None = None, *, seeds: Sequence[int] = TEST_SEEDS
) -> dict[str, float]:
    """Returns mean performance and availability of a policy over rates and bursts of one mesh.

    Targets are held as routers hold them: this is what would be served. Training itself judges
    without, so that what a network loses is not hidden by what holds it.

    Args:
        mesh: the mesh.
        policy: its name, where there is no snapshot.
        snapshot: of a learned policy.
        seeds: of the scenarios.

    Raises:
        UnknownPolicyError: unknown name.
        SnapshotError: a damaged snapshot.
    """
    return score(policy_spec(mesh, policy, snapshot), judging_scenarios(mesh, seeds))


def policy_spec(mesh: Mesh, policy: str, snapshot: bytes | None = None) -> PolicySpec:
    """Returns a policy as it is simulated; see `evaluate_policy`."""
    made = (
        make_policy(policy, mesh.catalog)
        if snapshot is None
        else make_policy("dqn", mesh.catalog, snapshot=load_snapshot(snapshot, SCHEMA))
    )
    return PolicySpec.of(made)


def judging_scenarios(mesh: Mesh, seeds: Sequence[int]) -> list[Scenario]:
    """Returns what policies are judged on before they serve: rates and bursts, targets held."""
    return held(evaluation_scenarios(mesh, seeds, requests=800))


def _evaluate(mesh: Mesh, run: PolicyIteration) -> dict[str, Any]:
    """Returns scores on the test seeds, the baselines' beside the policy's."""
    scenarios = evaluation_scenarios(mesh, TEST_SEEDS, requests=800)
    tiers = mesh.catalog.tiers
    names = ("price", "greedy", f"static-{tiers[-1]}", f"static-{tiers[0]}")
    baselines = {
        name: score(PolicySpec.of(make_policy(name, mesh.catalog)), scenarios) for name in names
    }
    own = {name: score(spec, scenarios) for name, spec in run.specs().items()}
    return {**own.pop("best"), **own, "baselines": baselines}


def _save(run: PolicyIteration, path: Path, elapsed_s: float) -> None:
    values, arrays = run.get_state()
    save_checkpoint(path, {"key": run.key(), "elapsed_s": elapsed_s, "run": values}, arrays)


def _restore(run: PolicyIteration, path: Path) -> float:
    """Goes on from a checkpoint if there is one; returns the seconds it had used.

    Raises:
        CheckpointError: it is damaged, or of a run with other settings.
    """
    remove_leftovers(path)
    found = load_checkpoint(path)
    if found is None:
        return 0.0
    meta, arrays = found
    try:
        if meta["key"] != run.key():
            raise CheckpointError(f"{path}: is of another run; delete it or give its settings")
        run.set_state(meta["run"], arrays)
        return float(meta["elapsed_s"])
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of a run: {error!r:.200}") from error
