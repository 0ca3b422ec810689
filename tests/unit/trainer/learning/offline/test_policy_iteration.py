"""Policy iteration step by step: search, stages, what drives, what is kept, what is saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.dqn.snapshot import load_snapshot
from router.features import SCHEMA
from router.policies.scheduled_price import has_schedule
from tests.unit.trainer.simulation.test_scenarios import PROFILE, QUALITY, TASKS
from trainer.learning.offline import paired_returns, policy_iteration
from trainer.learning.offline.config import Budget, OfflineConfig, PriceSearchConfig
from trainer.learning.offline.policy_iteration import SEARCH, TRAIN, PolicyIteration
from trainer.learning.offline.validation import Validation
from trainer.simulation.scenarios import Mesh, steady_scenarios

# The first test of a run compiles the simulator.
pytestmark = pytest.mark.timeout(300)

MESH = Mesh.build(profile=PROFILE, quality=QUALITY, tasks=TASKS, deadline_s=0.3, devices=1)
JUDGED = steady_scenarios(MESH, 1, requests=100)[:2]
SEARCHED = PriceSearchConfig(step=0.6, generations=(1,), population=4, requests=60)
TINY = OfflineConfig(
    hidden_count=4,
    episode_requests=120,
    episodes_per_round=1,
    samples_per_episode=4,
    steps_per_round=2,
    full_rounds=10,
    search=None,
)
TEN = Budget(seconds=0.0, rounds=10)


def run_of(config: OfflineConfig = TINY, **options: Any) -> PolicyIteration:
    """Returns a run on two short scenarios."""
    return PolicyIteration(MESH, config, seed=options.pop("seed", 1), validation=JUDGED, **options)


def finished(run: PolicyIteration) -> list[tuple[str, float]]:
    """Does a run of ten rounds and returns its steps."""
    return list(run.steps(TEN, lambda: 0.0))


def test_samples_are_collected_until_the_share_at_which_a_fit_begins() -> None:
    """With fits from .4 to .5 and from .85 on, rounds 5 and 10 of ten are gradient steps."""
    run, seen = run_of(), []
    for _ in run.steps(TEN, lambda: 0.0):
        facts = run.facts(1.0)
        seen.append((facts["transition_count"], facts["step_count"]))
    steps = np.diff([0, *(count for _, count in seen)])
    samples = np.diff([0, *(count for count, _ in seen)])
    assert np.flatnonzero(steps).tolist() == [4, 9]
    assert np.flatnonzero(samples).tolist() == [0, 1, 2, 3, 5, 6, 7, 8]


def test_search_comes_first_and_gives_the_prior() -> None:
    """The policy that is learned from there corrects a scheduled price."""
    run = run_of(replace(TINY, search=SEARCHED))
    phases = [phase for phase, _ in finished(run)]
    assert phases == [SEARCH] * phases.count(SEARCH) + [TRAIN] * 10
    assert phases.count(SEARCH) > 0
    assert load_snapshot(run.snapshot(), SCHEMA).schedule
    assert not load_snapshot(run_of().snapshot(), SCHEMA).schedule


def test_shares_done_rise_to_one() -> None:
    """What progress shows never falls, search and rounds together."""
    shares = [share for _, share in finished(run_of(replace(TINY, search=SEARCHED)))]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_time_ends_a_run_without_rounds() -> None:
    """Rounds go on while there is time, and no round begins after it."""
    run, clock = run_of(), iter(range(100))
    steps = list(run.steps(Budget(seconds=7.0), lambda: float(next(clock))))
    assert len(steps) == 4  # the clock is read before and after each


def test_fit_that_scores_less_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was learned, the best network is then the start, which is the prior."""
    run = run_of()
    monkeypatch.setattr(Validation, "score", lambda *_: -1.0)
    before = run.specs()["best"].weights
    finished(run)
    for old, new in zip(before, run.specs()["best"].weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_fit_that_scores_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its score stands in the snapshot."""
    run = run_of()
    monkeypatch.setattr(Validation, "score", lambda *_: 2.0)
    before = run.specs()["best"].weights
    finished(run)
    assert (before.w3_P != run.specs()["best"].weights.w3_P).any()
    assert load_snapshot(run.snapshot(), SCHEMA).evaluation["validation_score"] == 2.0


def test_network_below_price_drives_nothing() -> None:
    """Episodes and futures are then the prior's, however late in the run."""
    run = run_of()
    run._validation.price_score = 2.0
    rng = np.random.default_rng(0)
    drivers = [run._drivers(JUDGED[0], 0.9, rng) for _ in range(20)]
    assert all(spec is run._prior for pair in drivers for spec in pair)


def test_best_network_drives_half_of_the_episodes_and_the_late_futures() -> None:
    """Futures are the prior's at first, since they cost less."""
    run = run_of()
    run._validation.price_score = -2.0
    rng = np.random.default_rng(0)
    early = [run._drivers(JUDGED[0], 0.1, rng) for _ in range(200)]
    assert all(future is run._prior for _, future in early)
    assert 0.4 < np.mean([episode is run._prior for episode, _ in early]) < 0.6
    late = [run._drivers(JUDGED[0], 0.9, rng) for _ in range(20)]
    assert all(future is not run._prior for _, future in late)


def test_samples_have_the_features_of_what_is_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the prior drives or the network: those of the scheduled price that was found."""
    run = run_of(replace(TINY, search=SEARCHED))
    tables: list[Any] = []
    collect = paired_returns.episode_samples

    def note(*arguments: Any) -> Any:
        tables.append(arguments[-1])
        return collect(*arguments)

    monkeypatch.setattr(policy_iteration, "episode_samples", note)
    finished(run)
    assert len(tables) == 8
    assert all(has_schedule(table_P) for table_P in tables)


@pytest.mark.parametrize("steps_before", [1, 4, 7])
def test_restored_run_goes_on_to_the_same_result(steps_before: int) -> None:
    """Cut in the search, while collecting or after a fit, nothing differs at the end."""
    config = replace(TINY, search=SEARCHED)
    straight = run_of(config)
    finished(straight)
    cut, other = run_of(config), run_of(config)
    for _, _ in zip(range(steps_before), cut.steps(TEN, lambda: 0.0), strict=False):
        pass
    other.set_state(*cut.get_state())
    finished(other)
    assert other.snapshot() == straight.snapshot()


def test_key_tells_runs_apart() -> None:
    """Seed, settings and start make a run; the same ones make the same run."""
    key = run_of().key()
    assert key == run_of().key()
    initial = run_of().snapshot()
    others = (run_of(seed=2), run_of(replace(TINY, epsilon=0.2)), run_of(initial=initial))
    assert all(other.key() != key for other in others)


def test_key_tells_meshes_apart() -> None:
    """Other costs, qualities, deadlines or lengths make another run, though all names stay."""
    slower = {name: tier.scaled(1.1) for name, tier in PROFILE.tiers.items()}
    meshes = (
        MESH,
        replace(MESH, profile=replace(PROFILE, tiers=slower)),
        replace(MESH, catalog=replace(MESH.catalog, quality_KT=0.9 * MESH.catalog.quality_KT)),
        replace(MESH, catalog=replace(MESH.catalog, tasks=(TASKS[0], MESH.catalog.tasks[1]))),
        replace(MESH, lengths=replace(MESH.lengths, output_mean=9.0)),
    )
    runs = [PolicyIteration(mesh, TINY, seed=1, validation=JUDGED) for mesh in meshes]
    assert len({str(run.key()) for run in runs}) == len(meshes)
