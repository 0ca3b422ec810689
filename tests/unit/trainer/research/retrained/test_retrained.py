"""Policies retrained for one shift: what they train on, and what they are compared by."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.dqn.snapshot import Snapshot, save_snapshot
from router.features import FEATURES, SCHEMA
from tests.unit.trainer.evaluation import subjects
from trainer.evaluation import policies
from trainer.evaluation.cases import Case, CaseResult, Outcome
from trainer.evaluation.policies import Contender
from trainer.evaluation.shifts import Shift, shifted_settings, shifts_of
from trainer.evaluation.suite import Subject, run_suite
from trainer.learning.offline.episodes import ImprovementConfig, start_weights
from trainer.research.retrained.__main__ import main, markdown
from trainer.research.retrained.scenarios import shift_scenarios, training_seed
from trainer.research.retrained.study import Task, compared_rows, dqn_spec, run_study
from trainer.simulation.scenarios import Mesh

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

SETTING = subjects.setting()
SHIFTS = {shift.name: shift for shift in shifts_of(shifted_settings(SETTING))}
NAMES = tuple(feature.name for feature in FEATURES)
TINY = ImprovementConfig(hidden_count=4, episodes_per_round=1, steps_per_round=5)


def snapshot() -> bytes:
    """Returns a policy that has learned nothing."""
    weights = start_weights(4, np.random.default_rng(0))
    return save_snapshot(Snapshot(weights, SCHEMA, NAMES))


def task(**changes: Any) -> Task:
    """Returns a study of two shifts in a few rounds."""
    values: dict[str, Any] = {
        "snapshot": snapshot(),
        "setting": SETTING,
        "quality": subjects.QUALITY,
        "plan": subjects.PLAN,
        "rounds": 6,
        "shifts": ("task hard", "2 routers, stale"),
        "config": TINY,
    }
    return Task(**{**values, **changes})


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    """The study, computed in this process."""
    return run_study(task())


def mesh() -> Mesh:
    """Returns the nominal mesh."""
    return Mesh.build(
        profile=SETTING.profiles[""],
        quality=subjects.QUALITY,
        tasks=SETTING.catalog.tasks,
        deadline_s=SETTING.deadline_s,
        devices=2,
    )


@pytest.mark.parametrize("name", sorted(SHIFTS))
def test_episodes_are_of_the_shift_alone(name: str) -> None:
    """Its costs, tasks, routers, staleness and losses, at rates it is evaluated at."""
    shift, settings = SHIFTS[name], shifted_settings(SETTING)
    source = shift_scenarios(shift, settings[shift.setting], subjects.PLAN, 2000.0)
    scenario = source(mesh(), np.random.default_rng(1), 300)
    config, workload = scenario.config, scenario.workload
    assert config.profiles == settings[shift.setting].profiles
    assert (config.routers, config.staleness_s) == (shift.routers, shift.staleness_s)
    assert config.events == shift.events(workload.duration_s)
    if name == "task hard":
        assert set(workload.task_N) == {1}


def test_rates_span_those_of_the_evaluation() -> None:
    """From the lowest to the highest share of what always-small holds, no further."""
    plan = replace(subjects.PLAN, shift_shares=(0.1, 0.8))
    source = shift_scenarios(Shift("nominal"), SETTING, plan, 1000.0)
    rng = np.random.default_rng(2)
    workloads = [source(mesh(), rng, 300).workload for _ in range(40)]
    rates = [len(workload) / workload.duration_s for workload in workloads]
    assert 80.0 < min(rates) < 150.0
    assert 550.0 < max(rates) < 900.0


def test_every_shift_trains_on_a_stream_of_its_own() -> None:
    """Seeds differ by shift and by the study's seed, and are one word, as no evaluation's is."""
    seeds = {training_seed(seed, name) for seed in (1, 2) for name in SHIFTS}
    assert len(seeds) == 2 * len(SHIFTS)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_shift_is_retrained_alike_whatever_others_are(study: dict[str, Any]) -> None:
    """One shift by itself gives the same numbers, to the digit, as beside another."""
    alone = run_study(task(shifts=("task hard",)))
    for part in ("rows", "training"):
        assert alone[part] == [row for row in study[part] if row["shift"] == "task hard"]
    assert json.loads(json.dumps(study, allow_nan=False)) == study


def test_original_meets_the_very_requests_of_the_protocol(study: dict[str, Any]) -> None:
    """Its performance is that of the evaluation's own rows, to the digit."""
    spec = dqn_spec(snapshot(), SETTING.catalog)
    contenders = {
        name: policies.baseline(name, SETTING.catalog)
        for name in policies.yardsticks(SETTING.catalog)
    } | {"dqn": Contender("dqn", spec, "v", "learned")}
    report = run_suite(Subject(SETTING, contenders, "dqn", workloads=()), subjects.PLAN)
    theirs = {
        (row["shift"], row["safety_net"]): row["performance"]
        for row in report["shifts"]
        if row["policy"] == "dqn"
    }
    for row in study["rows"]:
        assert row["performance"] == theirs[row["shift"], row["safety_net"]]


def test_policy_that_is_worse_on_validation_is_not_kept(study: dict[str, Any]) -> None:
    """Then the original stands for the retrained one, and the ratio is one."""
    for facts in study["training"]:
        better = facts["validation_trained"] > facts["validation_original"]
        assert (facts["kept"] == "retrained") is better
        rows = [row for row in study["rows"] if row["shift"] == facts["shift"]]
        assert better or {row["ratio"] for row in rows} == {1.0}


def compared(*pairs: tuple[float, float]) -> dict[str, Any]:
    """Returns the row of an original's and a retrained policy's performances, by seed."""

    def outcome(performance: float) -> Outcome:
        return Outcome(1.0, performance, 0.1, 0.2, 1.0, 1.0, np.zeros(3), np.zeros(0))

    results = []
    for seed, (before, after) in enumerate(pairs):
        case = Case("shifts", "nominal", 2.0, 100.0, seed, 5.0, ("a", "b"), nets=(True,))
        pair = {("a", True): outcome(before), ("b", True): outcome(after)}
        results.append(CaseResult(case, pair, None))
    return compared_rows(results, [Shift("nominal")], {"": 1000.0})[0]


def test_where_nobody_serves_anything_there_is_no_ratio() -> None:
    """Nothing beside nothing is neither near nor far."""
    assert compared((0.0, 0.0), (0.0, 0.001))["ratio"] is None


def test_ratio_is_taken_in_pairs() -> None:
    """0.9 of 1.0 and 0.45 of 0.5 is 0.9 without spread, however far the seeds differ."""
    row = compared((0.9, 1.0), (0.45, 0.5))
    assert row["ratio"] == pytest.approx(0.9)
    assert row["ratio_ci95"] == [pytest.approx(0.9), pytest.approx(0.9)]
    assert row["share_of_always_small"] == pytest.approx(0.1)


def test_tables_have_every_shift(study: dict[str, Any]) -> None:
    """One line per point with the safety net on, one per training."""
    lines = markdown(study).splitlines()
    assert sum(line.startswith("| 2 routers, stale") for line in lines) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.safetensors"], "missing.safetensors"),
        (["SNAPSHOT", "--rounds", "0"], "--rounds"),
        (["SNAPSHOT", "--shift", "tides"], "'tides'; known: 'nominal'"),
        (["DAMAGED"], "SNAPSHOT_"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, before any training."""
    (tmp_path / "s").write_bytes(snapshot())
    (tmp_path / "d").write_bytes(b"\x08")
    places = {"SNAPSHOT": str(tmp_path / "s"), "DAMAGED": str(tmp_path / "d")}
    assert main([places.get(word, word) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
