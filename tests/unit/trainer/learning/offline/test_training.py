"""The training of one mesh from end to end: what comes out, budgets, kills."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.dqn import DqnPolicy
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.checkpoint import CheckpointError
from trainer.learning.offline import training, validation
from trainer.learning.offline.config import Budget, OfflineConfig, PriceSearchConfig
from trainer.learning.offline.training import evaluate_policy, train_policy
from trainer.simulation.scenarios import Mesh

# The first test of a run compiles the simulator, and training takes a while beside other work.
pytestmark = pytest.mark.timeout(900)

MESH = Mesh.build(profile=PROFILE, quality=QUALITY, tasks=TASKS, deadline_s=0.3, devices=1)


@pytest.fixture(autouse=True, scope="module")
def few_seeds() -> Iterator[None]:
    """Validates and evaluates on one seed each: what is tested here needs no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "VALIDATION_SEEDS", (700_001,))
        patch.setattr(training, "TEST_SEEDS", (800_001,))
        yield


@pytest.fixture(scope="module")
def trained() -> bytes:
    """A policy trained for a few rounds."""
    reports: list[float] = []
    blob = train_policy(
        MESH,
        OfflineConfig(steps_per_round=50),
        seed=1,
        budget=Budget(seconds=1.0, rounds=18),
        progress=lambda share, _facts: reports.append(share),
    )
    assert reports == sorted(reports)
    assert reports[-1] == 1.0
    return blob


def test_trained_policy_is_a_sound_snapshot(trained: bytes) -> None:
    """It loads, decides, and carries its evaluation, seed and config."""
    snapshot = load_snapshot(trained, SCHEMA)
    assert DqnPolicy(snapshot).version == snapshot.version
    assert snapshot.training["seed"] == 1
    assert snapshot.transition_count > 100
    assert set(snapshot.evaluation["baselines"]) >= {"price", "greedy", "static-large"}
    assert snapshot.fleet["tiers"] == ["small", "large"]


def test_training_pays_within_few_rounds(trained: bytes) -> None:
    """Even then it beats both static policies and greedy on seeds it never saw."""
    seeds = (910_001, 910_002)
    own = evaluate_policy(MESH, "dqn", trained, seeds=seeds)
    for name in ("static-large", "static-small", "greedy"):
        other = evaluate_policy(MESH, name, seeds=seeds)
        assert own["performance"] > other["performance"], name
    assert own["availability"] > 0.9


def test_policies_are_judged_as_routers_serve_them() -> None:
    """Price holds the targets of its tasks, at the cost of quality; without targets it does not."""
    free = [dataclasses.replace(task, target=0.0) for task in TASKS]
    unheld = Mesh.build(profile=PROFILE, quality=QUALITY, tasks=free, deadline_s=0.3, devices=1)
    found, without = (evaluate_policy(mesh, "price", seeds=(910_001,)) for mesh in (MESH, unheld))
    assert found["availability"] > without["availability"] + 0.005


def test_zeroed_network_is_price(trained: bytes) -> None:
    """What was learned does the work: without the network the policy is price, to the digit."""
    evaluation = load_snapshot(trained, SCHEMA).evaluation
    assert evaluation["zeroed"] == evaluation["baselines"]["price"]
    assert evaluation["performance"] != evaluation["zeroed"]["performance"]


class Killed(Exception):  # noqa: N818 - stands for a signal, not for an error
    """Ends a run from outside."""


def test_killed_run_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rounds for a budget a run is reproducible, across a kill too."""
    monkeypatch.setattr(training, "CHECKPOINT_INTERVAL_S", 0.0)
    tiny = OfflineConfig(
        hidden_count=8,
        episode_requests=600,
        episodes_per_round=2,
        steps_per_round=5,
        search=PriceSearchConfig(step=0.6, generations=(2,), population=4, requests=100),
    )
    run: dict[str, Any] = {"seed": 3, "budget": Budget(seconds=1.0, rounds=12)}
    straight = train_policy(MESH, tiny, **run)
    path = tmp_path / "checkpoint"

    def kill(share: float, _facts: Any) -> None:
        if share > 0.4:
            raise Killed

    with pytest.raises(Killed):
        train_policy(MESH, tiny, **run, checkpoint=path, progress=kill)
    assert path.exists()
    with pytest.raises(CheckpointError, match="another run"):
        train_policy(MESH, tiny, **run | {"seed": 4}, checkpoint=path)
    assert train_policy(MESH, tiny, **run, checkpoint=path) == straight
    # Nobody has what was made yet, and who asked may be killed before it is written.
    assert path.exists()


def test_training_goes_on_from_a_snapshot(trained: bytes) -> None:
    """A second run starts from the first one's weights and never gets worse on validation."""
    short = OfflineConfig(episode_requests=600)
    blob = train_policy(MESH, short, seed=2, budget=Budget(seconds=1.0), initial=trained)
    again = load_snapshot(blob, SCHEMA)
    first = load_snapshot(trained, SCHEMA)
    assert again.training["parent"] == first.version
    before = first.evaluation["validation_score"]
    assert again.evaluation["validation_score"] >= before - 1e-6
