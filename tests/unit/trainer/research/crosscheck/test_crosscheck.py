"""The cross-check: one environment, one budget and one test for every learner."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.unit.trainer.simulation.settings import config, spec
from trainer.evaluation.setting import Setting
from trainer.learning.online.config import LearnerConfig
from trainer.learning.online.double_dqn import DoubleDqnLearner
from trainer.learning.online.replay import Transitions
from trainer.research.crosscheck import library
from trainer.research.crosscheck.__main__ import main
from trainer.research.crosscheck.arena import Arena, play, play_compiled
from trainer.research.crosscheck.library import LibraryMissingError
from trainer.research.crosscheck.own import Target, TrainingPlan, chooser, train_double_dqn
from trainer.research.crosscheck.run import LEARNERS, OWN, crosscheck, overall

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

needs_library = pytest.mark.skipif(
    not library.is_installed(), reason="stable-baselines3 is not installed (extra: crosscheck)"
)
SMALL_PLAN = TrainingPlan(200, warm_up_steps=100, batch_size=16)


def arena(**changes: float) -> Arena:
    """Returns one device of the test fleet, with short episodes."""
    made = config(1)
    setting = Setting("test", made.catalog, made.fleet, made.profiles, 0.4)
    rates = {"low_rps": 20.0, "high_rps": 60.0} | changes
    return Arena(setting, rates["low_rps"], rates["high_rps"], episode_requests=60)


def last(_: object, allowed_C: NDArray[np.int8]) -> int:
    """Chooses the last candidate: the largest tier."""
    return len(allowed_C) - 1


def test_a_step_at_peak_performance_earns_nothing() -> None:
    """The largest tier on an idle device ends at a reward of about 0; a missed request costs 1."""
    environment = arena(low_rps=2.0, high_rps=2.0).training()
    environment.reset(seed=3)
    done, total, steps = False, 0.0, 0
    while not done:
        _, reward, _, done, _ = environment.step(np.int64(2))
        total, steps = total + float(reward), steps + 1
    assert steps > 2
    assert total == pytest.approx(0.0, abs=1e-9)


def test_stepped_and_compiled_tests_agree() -> None:
    """The same policy scores the same through the environment and through the compiled run."""
    where = arena()
    offered = where.test(60.0, 900_001, 5.0)
    stepped = play(where, last, offered, 0.8)
    assert stepped == play_compiled(where, spec("static-large"), offered, 0.8)
    assert 0.0 < stepped.availability < 1.0


def test_tests_are_the_same_for_all_and_differ_between_seeds() -> None:
    """Rate and seed decide a test, and nothing else."""
    where = arena()
    first, again, other = (where.test(60.0, seed, 2.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.arrival_N, again.arrival_N)
    assert len(first) != len(other) or (first.arrival_N != other.arrival_N).any()


def test_own_learner_is_a_function_of_its_seed() -> None:
    """The same seed gives the same weights, another one others."""
    runs = [train_double_dqn(arena(), SMALL_PLAN, seed) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0].w1_FH, runs[1].w1_FH)
    assert (runs[0].w1_FH != runs[2].w1_FH).any()


def sampled(where: Arena, target: Target, monkeypatch: pytest.MonkeyPatch) -> Transitions:
    """Returns what a short training run with this target learned from, all batches together."""
    batches: list[Transitions] = []

    def step(_: DoubleDqnLearner, batch: Transitions) -> float:
        batches.append(batch)
        return 0.0

    monkeypatch.setattr(DoubleDqnLearner, "step", step)
    train_double_dqn(where, TrainingPlan(800, warm_up_steps=500, batch_size=16), 1, target=target)
    return Transitions(*(np.concatenate(parts) for parts in zip(*batches, strict=True)))


@pytest.mark.parametrize("rate_rps", [20.0, 60.0])
def test_targets_of_one_decision_are_the_librarys(
    rate_rps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every discount is the library's per decision, at every rate."""
    where = replace(arena(), low_rps=rate_rps, high_rps=rate_rps)
    seen = sampled(where, Target.DECISION, monkeypatch)
    np.testing.assert_allclose(seen.discount_B, library.gamma(where), rtol=1e-6)


def test_targets_of_a_deadline_span_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values a deadline or more away count by elapsed time: at most exp(-deadline / tau)."""
    where = replace(arena(), low_rps=60.0)
    seen = sampled(where, Target.DEADLINE, monkeypatch)
    limit = math.exp(-1.0 / LearnerConfig().tau_deadlines)
    assert seen.discount_B.max() <= limit * (1 + 1e-6)
    assert np.median(seen.discount_B) > 0.8 * limit


def test_own_learner_learns_what_a_random_policy_does_not() -> None:
    """Where only small tiers keep up, a few thousand steps beat choosing at random."""
    where = arena(low_rps=300.0, high_rps=300.0)
    weights = train_double_dqn(where, TrainingPlan(1_600, warm_up_steps=400, batch_size=32), 1)
    offered = where.test(300.0, 900_001, 5.0)
    learned = play(where, chooser(weights), offered, 0.8)
    drawn = play_compiled(where, spec("random"), offered, 0.8)
    assert learned.performance > drawn.performance + 0.2


def test_exploration_falls_to_its_end() -> None:
    """Epsilon starts at 1, is halfway at a quarter of the budget and stays at its end."""
    plan = TrainingPlan(1000, exploration_share=0.5, epsilon_end=0.1)
    assert [plan.epsilon(step) for step in (0, 250, 500, 999)] == pytest.approx(
        [1.0, 0.55, 0.1, 0.1]
    )


@needs_library
def test_every_learner_gets_the_same_budget_and_rows() -> None:
    """One row per learner and rate, references beside them; progress ends at 1."""
    shares: list[float] = []
    rows = crosscheck(
        arena(),
        rates_rps=(20.0, 60.0),
        seeds=(1,),
        plan=SMALL_PLAN,
        test_seeds=(900_001,),
        test_requests=50,
        large_held_rps=40.0,
        on_progress=lambda text, share: shares.append(share),
    )
    learned = [row for row in rows if row["steps"] > 0]
    assert [row["learner"] for row in learned] == [name for name in LEARNERS for _ in range(2)]
    assert {row["steps"] for row in learned} == {200}
    assert {row["seed_count"] for row in learned} == {1}
    assert [row["load"] for row in learned[:2]] == [0.5, 1.5]
    assert all(row["seconds"] > 0 for row in learned)
    assert {"random", "price", "static-small", "static-large"} <= set(overall(rows))
    for row in rows:
        assert 0.0 <= row["availability"] <= 1.0
        assert row["performance_ci95"][0] <= row["performance"] <= row["performance_ci95"][1]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@needs_library
def test_ppo_stays_within_the_budget() -> None:
    """Whole rollouts only: the last step lies at or below the budget, not far from it."""
    seen: list[int] = []
    library.train_library("sb3-ppo", arena(), SMALL_PLAN, 1, seen.append)
    assert 0.9 * SMALL_PLAN.steps < seen[-1] <= SMALL_PLAN.steps


@needs_library
@pytest.mark.parametrize("learner", library.LIBRARY_LEARNERS)
def test_library_learners_are_functions_of_their_seed(learner: str) -> None:
    """The same seed gives the same choices on the same requests."""
    where = arena()
    offered = where.test(60.0, 900_001, 2.0)
    scores = [
        play(where, library.train_library(learner, where, SMALL_PLAN, 5), offered, 0.0)
        for _ in range(2)
    ]
    assert scores[0] == scores[1]


def test_a_missing_library_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library the error says how to get it."""
    monkeypatch.setattr(library, "is_installed", lambda: False)
    with pytest.raises(LibraryMissingError, match=r"pip install 'tiercel\[crosscheck\]'"):
        library.train_library("sb3-dqn", arena(), SMALL_PLAN, 1)


def test_the_command_writes_rows_and_prints_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One command: rows as JSON, a line per learner."""
    monkeypatch.setattr("trainer.research.crosscheck.__main__.held_rps", lambda *_: 40.0)
    monkeypatch.setattr("trainer.research.crosscheck.__main__.LOADS", (0.5, 1.0))
    out = tmp_path / "rows.json"
    assert main(["--steps", "200", "--seeds", "1", "--learners", OWN, "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["crosscheck"]
    assert [row["load"] for row in rows[:2]] == [0.5, 1.0]
    assert "double-dqn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile", "missing.toml"], "crosscheck: missing.toml: No such file"),
        (["--quality", "profiles/opt-a100.toml"], "crosscheck: profiles/opt-a100.toml: quality"),
    ],
)
def test_a_wrong_file_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read is named."""
    assert main(options) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--learners", "magic"], ["--steps", "0"], ["--seeds", "x"]])
def test_a_wrong_option_is_named(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each option says its limits."""
    with pytest.raises(SystemExit):
        main(options)
    assert options[0] in capsys.readouterr().err
