"""The policy of each shift, retrained and compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.research.retrained.studies import snapshot, task
from trainer.evaluation import policies
from trainer.evaluation.cases import Case, CaseResult, Outcome
from trainer.evaluation.policies import Contender
from trainer.evaluation.shifts import Shift
from trainer.evaluation.suite import Subject, run_suite
from trainer.research.retrained.study import compared_rows, dqn_spec, run_study

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles


SETTING = subjects.setting()


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
