"""Tuning: one budget and one set of cases for every policy, reproducible by seed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.unit.router import fleets
from tests.unit.trainer.simulation.settings import spec
from trainer.research import tuning
from trainer.simulation.setting import full_rate_rps, shared_fleet_setting, unit_rate_rps
from trainer.simulation.simulate import simulate
from trainer.simulation.workload import Lengths

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

SETTING = shared_fleet_setting(
    "test", fleets.profile(), fleets.quality(), device_count=2, lengths=Lengths(prompt_sigma=0.0)
)
CASES = [
    tuning.make_case(SETTING, rate, seed=1, requests=300, reference=1.0) for rate in (60.0, 400.0)
]
CASE_REQUESTS = sum(len(case.workload) for case in CASES)


def test_search_leaves_a_bad_start_behind_and_is_reproducible() -> None:
    """CMA-ES finds better parameters than it started with; the same seed finds the same."""
    start = {"weight": 4.5, "step_share": 0.0}
    runs = [tuning.tune("debt-queue", CASES, evaluations=24, seed=1, start=start) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0][1] > tuning.score(spec("debt-queue", **start), CASES)


def test_score_found_is_the_score_of_the_parameters_found() -> None:
    """What is reported can be had again from the parameters."""
    found, best = tuning.tune("threshold", CASES, evaluations=12, seed=2)
    assert tuning.score(spec("threshold", **found), CASES) == pytest.approx(best)


def test_one_parameter_is_scanned_over_its_whole_range() -> None:
    """A policy with one parameter never does worse than the best of the range's two ends."""
    _, best = tuning.tune("greedy", CASES, evaluations=12, seed=1)
    ends = [tuning.score(spec("greedy", margin=margin), CASES) for margin in (0.05, 2.0)]
    assert best >= max(ends)


def test_search_leaves_a_plateau() -> None:
    """Where every point near the defaults scores alike, the spread of points finds a better one."""
    found, best = tuning.tune("greedy-prior", CASES, evaluations=60, seed=1)
    assert best > tuning.score(spec("greedy-prior"), CASES) + 0.1
    assert found["margin"] < 0.4


def test_availability_below_holding_costs_score() -> None:
    """With answers of equal quality the score is performance less the stated penalty."""
    case = tuning.make_case(SETTING, 400.0, seed=1, requests=300, reference=1.0)
    result = simulate(case.config, case.workload, spec("static-large"), case.seed)
    on_time = result.availability(0.5)
    assert on_time < 0.9
    expected = result.performance(0.5) - tuning.PENALTY * (0.99 - on_time)
    assert tuning.score(spec("static-large"), [case]) == pytest.approx(expected)


def test_budget_is_counted_in_simulated_requests() -> None:
    """A budget buys as many scores as it holds rounds over the cases, and no more."""
    tuned = tuning.tune_within("greedy", CASES, requests=11 * CASE_REQUESTS + 5, seed=1)
    assert tuned.evaluations == 11
    assert tuned.requests == 11 * CASE_REQUESTS
    searched = tuning.tune_within("debt-queue", CASES, requests=30 * CASE_REQUESTS, seed=1)
    assert 20 <= searched.evaluations <= 30
    assert tuned.score >= tuned.default_score


def test_budget_too_small_is_refused_with_the_least_possible() -> None:
    """The error names the smallest budget."""
    with pytest.raises(tuning.TuningError, match=str(10 * CASE_REQUESTS)):
        tuning.tune_within("greedy", CASES, requests=5, seed=1)


def test_policy_without_parameters_cannot_be_tuned() -> None:
    """The error lists those that can."""
    with pytest.raises(tuning.TuningError, match="price"):
        tuning.tune("random", CASES, evaluations=1, seed=0)


def test_cases_span_the_rates_and_the_kinds_of_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates from a quarter of what large holds to what small can carry; bursts; net off and on."""
    monkeypatch.setattr(tuning, "fluid_reference", lambda _setting, _rate: 1.0)
    cases = tuning.tuning_cases(SETTING, 1)
    rates = [len(case.workload) / case.workload.duration_s for case in cases]
    unit = unit_rate_rps(SETTING)
    small = full_rate_rps(SETTING, largest=False)
    assert min(rates) == pytest.approx(0.25 * unit, rel=0.15)
    assert 0.6 * small < max(rates) < 0.98 * small
    assert {case.config.safety for case in cases} == {False, True}
    gaps = [np.diff(case.workload.arrival_N) for case in cases]
    assert max(gap.std() / gap.mean() for gap in gaps) > 4.0


def test_command_prints_a_line_of_json_per_policy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Policy, parameters, score and budget, ready to be kept."""
    monkeypatch.setattr(tuning, "tuning_cases", lambda _setting, _seed: CASES)
    requests = 10 * CASE_REQUESTS
    assert tuning.main(["greedy", "slackfit", "--requests", str(requests), "--seed", "3"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["policy"] for line in lines] == ["greedy", "slackfit"]
    assert all(line["requests"] == requests and line["seed"] == 3 for line in lines)
    assert set(lines[0]["parameters"]) == {"margin"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "--devices must be at least 1"),
        (["--profile", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line that names what is wrong."""
    assert tuning.main(["greedy", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
