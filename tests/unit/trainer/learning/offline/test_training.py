"""Paired returns and the training of one mesh in a minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.dqn import DqnPolicy
from router.policies.table import make_policy
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.checkpoint import CheckpointError
from trainer.learning.network import forward, initial_weights
from trainer.learning.offline import paired_returns as paired
from trainer.learning.offline import policy_iteration as improvement
from trainer.learning.offline import training as quick
from trainer.learning.offline.episodes import ImprovementConfig
from trainer.learning.offline.paired_learner import PairedConfig, PairedLearner, paired_loss
from trainer.learning.offline.paired_returns import PairedSamples, paired_samples
from trainer.learning.offline.price_search import ScheduleConfig
from trainer.learning.offline.training import evaluate_policy, train_policy
from trainer.simulation.scenarios import Mesh, training_scenario
from trainer.simulation.simulate import PolicySpec

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(300)

SETTING: dict[str, Any] = {
    "profile": PROFILE,
    "quality": QUALITY,
    "tasks": TASKS,
    "deadline_s": 0.3,
    "devices": 1,
}


SHORT_SEARCH = ScheduleConfig(step=0.6, generations=(2,), population=4, requests=100)
SHORT: dict[str, Any] = {"budget_s": 1.0, "episode_requests": 600}


def _samples(seed: int, rate_factor: float) -> PairedSamples:
    """Returns samples of steady traffic under the price policy."""
    mesh = Mesh.build(**SETTING, max_rate_rps=None)
    rng = np.random.default_rng(seed)
    scenario = training_scenario(mesh, rng, int(400 * rate_factor))
    price = PolicySpec.of(make_policy("price", mesh.catalog))
    return paired_samples(
        scenario,
        price,
        np.random.default_rng(seed),
        sample_count=10,
        horizon_s=0.6,
        epsilon=0.1,
        mix_T=(1.0, 1.0),
    )


def test_paired_returns_are_reproducible_and_paired() -> None:
    """The same seed gives the same returns; trying changes nothing but the action tried."""
    one, two = _samples(3, 1.0), _samples(3, 1.0)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(one.x_BCF) >= 5
    assert (one.tried_BC.sum(axis=1) >= 2).all()
    assert not (one.tried_BC & ~one.allowed_BC).any()
    assert not one.return_BC[~one.tried_BC].any()


def test_idle_mesh_gains_the_quality() -> None:
    """Where nobody else is there, the difference between actions is their own quality."""
    mesh = Mesh.build(**SETTING, max_rate_rps=None)
    base = training_scenario(mesh, np.random.default_rng(0), 50)
    workload = base.workload
    count = len(workload)
    # One request per two seconds: no two ever meet.
    alone = type(workload)(
        np.arange(count, dtype=np.float64) * 2.0,
        workload.task_N,
        workload.prompt_N,
        workload.output_N,
        np.full(count, 1.0),
        2.0 * count,
    )
    scenario = type(base)(base.config, alone, 1)
    spec = PolicySpec.of(make_policy("static-small", mesh.catalog))
    found = paired_samples(
        scenario, spec, np.random.default_rng(0), sample_count=8, horizon_s=1.5,
        epsilon=0.0, mix_T=(1.0, 1.0),
    )  # fmt: skip
    gap_B = found.return_BC[:, 1] - found.return_BC[:, 0]
    quality_B = found.x_BCF[:, 1, 0] - found.x_BCF[:, 0, 0]
    np.testing.assert_allclose(gap_B, quality_B, atol=1e-5)


def test_loss_ignores_the_level() -> None:
    """A constant added to all returns of a decision changes nothing."""
    rng = np.random.default_rng(0)
    weights = initial_weights(3, 4, rng)
    parameters = {name: torch.tensor(np.asarray(w)) for name, w in weights._asdict().items()}
    x, tried = torch.rand(6, 4, 3), torch.rand(6, 4) < 0.7
    tried[:, :2] = True
    returns = torch.rand(6, 4) * tried
    shifted = (returns + 100.0 * torch.rand(6, 1)) * tried
    args = (parameters, x, torch.ones(6, 4, dtype=torch.bool), tried)
    config = PairedConfig()
    assert float(paired_loss(*args, returns, config)) == pytest.approx(
        float(paired_loss(*args, shifted, config)), rel=1e-3
    )


def test_learner_finds_the_better_action() -> None:
    """On returns with a known best action the network comes to prefer it."""
    rng = np.random.default_rng(1)
    config = PairedConfig(average_rate=0.1, shrinkage=0.0, weight_decay=0.0)
    learner = PairedLearner(initial_weights(3, 8, rng), config)

    def batch() -> PairedSamples:
        x = rng.random((128, 3, 3)).astype(np.float32)
        everything = np.ones((128, 3), bool)
        level = 50.0 * rng.random((128, 1))
        return PairedSamples(x, everything, everything, (x[:, :, 1] + level).astype(np.float32))

    losses = [learner.step(batch()) for _ in range(300)]
    assert np.mean(losses[-20:]) < 0.1 * np.mean(losses[:20])


def test_shrinkage_keeps_noise_out() -> None:
    """Where returns say nothing, the network stays near the correction it is pulled to."""
    sizes = {}
    for shrinkage in (0.0, 3.0):
        rng = np.random.default_rng(2)
        config = PairedConfig(shrinkage=shrinkage, weight_decay=0.0, average_rate=0.1)
        learner = PairedLearner(initial_weights(3, 16, rng), config, prior_column=2)
        x = rng.random((64, 3, 3)).astype(np.float32)
        everything = np.ones((64, 3), bool)
        noise = rng.normal(size=(64, 3)).astype(np.float32)
        for _ in range(300):
            learner.step(PairedSamples(x, everything, everything, noise))
        weights = {k: torch.tensor(np.asarray(w)) for k, w in learner.weights()._asdict().items()}
        q = forward(weights, torch.from_numpy(x), torch.from_numpy(everything)).numpy()
        off = (q - q.mean(axis=1, keepdims=True)) - (x - x.mean(axis=1, keepdims=True))[:, :, 2]
        sizes[shrinkage] = float(off.std())
    assert sizes[3.0] < 0.5 * sizes[0.0]


@pytest.fixture(autouse=True, scope="module")
def few_seeds() -> Iterator[None]:
    """Validates and evaluates on one seed each: what is tested here needs no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(improvement, "VALIDATION_SEEDS", (700_001,))
        patch.setattr(improvement, "TEST_SEEDS", (800_001,))
        yield


@pytest.fixture(scope="module")
def trained() -> bytes:
    """A policy trained for a few rounds."""
    reports: list[float] = []
    blob = train_policy(
        **SETTING,
        seed=1,
        budget_s=1.0,
        rounds=18,
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
    own = evaluate_policy(**SETTING, policy="dqn", snapshot=trained, seeds=seeds)
    for name in ("static-large", "static-small", "greedy"):
        other = evaluate_policy(**SETTING, policy=name, seeds=seeds)
        assert own["performance"] > other["performance"], name
    assert own["availability"] > 0.9


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
    monkeypatch.setattr(quick, "CHECKPOINT_INTERVAL_S", 0.0)
    tiny = ImprovementConfig(
        hidden_count=8, episodes_per_round=2, steps_per_round=5, schedule=SHORT_SEARCH
    )
    run: dict[str, Any] = {**SETTING, **SHORT, "seed": 3, "rounds": 12, "config": tiny}
    straight = train_policy(**run)
    path = tmp_path / "checkpoint"

    def kill(share: float, _facts: Any) -> None:
        if share > 0.4:
            raise Killed

    with pytest.raises(Killed):
        train_policy(**run, checkpoint=path, progress=kill)
    assert path.exists()
    with pytest.raises(CheckpointError, match="another run"):
        train_policy(**{**run, "seed": 4}, checkpoint=path)
    assert train_policy(**run, checkpoint=path) == straight
    assert not path.exists()


def test_training_goes_on_from_a_snapshot(trained: bytes) -> None:
    """A second run starts from the first one's weights and never gets worse on validation."""
    again = load_snapshot(
        train_policy(**SETTING, **SHORT, seed=2, initial_snapshot=trained), SCHEMA
    )
    first = load_snapshot(trained, SCHEMA)
    assert again.training["parent"] == first.version
    before = first.evaluation["validation_score"]
    assert again.evaluation["validation_score"] >= before - 1e-6


def test_copied_world_equals_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy a future starts from is the source, though only parts of it are copied."""
    refill = paired._Copy.refill
    checked = 0

    def check(self: Any, start_s: float, end_s: float) -> Any:
        nonlocal checked
        world, source = refill(self, start_s, end_s), self._source
        used = {"heap_s": "heap", "heap_id": "heap", "pending_N": "pending"}
        for name in world._fields:
            own, new = getattr(world, name), getattr(source, name)
            if name in used:
                count = int(source.clock[used[name]][0])
                own, new = own[:count], new[:count]
            for a, b in zip(paired._arrays(own), paired._arrays(new), strict=True):
                assert a.tobytes() == b.tobytes(), name
        checked += 1
        return world

    monkeypatch.setattr(paired._Copy, "refill", check)
    for seed in range(6):
        _samples(seed, 2.0)
    assert checked > 50
