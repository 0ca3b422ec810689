"""Parts of the evaluation with answers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from router.policies.registry import make_policy
from router.types import UnknownPolicyError
from tests.unit.router import fleets
from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.evaluation.subjects import headline_report, outcome, result
from tests.unit.trainer.simulation.settings import spec
from trainer.evaluation.cases import WARM_UP_S, WINDOW_S, Case, CaseResult, outcome_of
from trainer.evaluation.fluid import fluid_reference
from trainer.evaluation.gpus import GpuCount, GpuJob, gpu_rows, large_only
from trainer.evaluation.headlines import headlines
from trainer.evaluation.hold import bracket_rps, highest_held_rps, holds
from trainer.evaluation.jobs import Context
from trainer.evaluation.plan import PLANS
from trainer.evaluation.policies import baseline, baseline_names
from trainer.evaluation.regret import coping_points, regret_point_rows, regret_rows
from trainer.evaluation.rows import ratio_of_means, violations
from trainer.evaluation.scenarios import SCENARIOS
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.setting import shared_fleet_setting
from trainer.evaluation.shifts import shifted_settings, shifts_of
from trainer.evaluation.statistics import interval
from trainer.evaluation.suite import soft
from trainer.evaluation.windows import (
    crossing,
    window_count_rows,
    window_rows,
)
from trainer.simulation.simulate import PolicySpec, simulate
from trainer.simulation.workload import Lengths
from trainer.traces.fit import fit_trace
from trainer.traces.synthetic import open_trace

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles

SETTING = subjects.setting()


def test_reference_is_peak_when_large_can_carry_all() -> None:
    """At a low rate the best mix is the large tier alone."""
    assert fluid_reference(SETTING, 20.0, grid=6) == pytest.approx(1.0)


def test_reference_falls_with_the_rate_to_nothing() -> None:
    """More traffic never raises it; far beyond capacity hardly anything is served."""
    values = [fluid_reference(SETTING, rate, grid=6) for rate in (50.0, 400.0, 1e5)]
    assert (np.diff(values) <= 1e-9).all()
    assert values[-1] < 0.05


def test_reference_of_one_full_device_is_worked_out_by_hand() -> None:
    """With one tier the optimum serves the share its best cycle can carry."""
    setting = shared_fleet_setting(
        "one",
        fleets.profile(),
        subjects.QUALITY,
        tiers=("large",),
        device_count=1,
        lengths=Lengths(prompt_median=100.0, prompt_sigma=0.0),
    )
    tier = fleets.profile().tiers["large"]
    cycle_s = (0.4 - 100 * tier.per_prompt_token_s) / 8
    each_s = 100 * tier.per_prompt_token_s + 8 * tier.per_sequence_s
    capacity = (cycle_s - tier.step_s) / cycle_s / each_s
    assert fluid_reference(setting, 4 * capacity) == pytest.approx(0.25, rel=1e-3)


def test_interval_is_students() -> None:
    """Three values: half width is 4.303 standard errors; one value has none."""
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.3027 / np.sqrt(3), rel=1e-4)
    assert interval([5.0]).half == 0.0


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_arrivals_have_the_rate_they_are_asked_for(name: str) -> None:
    """A load means the same whatever the arrival process."""
    rng = np.random.default_rng(3)
    counts = [len(SCENARIOS[name].make(200.0, 400.0, rng)) for _ in range(4)]
    assert np.mean(counts) == pytest.approx(200.0 * 400.0, rel=0.08)


def test_highest_held_rate_is_between_holding_and_not() -> None:
    """Static-large holds the rate found, and no longer 1.3 times it."""
    policy = spec("static-large")
    low, high = bracket_rps(SETTING, policy, 40.0, [1], 5.0, safety=False)
    held = highest_held_rps(
        SETTING, policy, low_rps=low, high_rps=high, seeds=[1], duration_s=5.0, safety=False
    )
    assert high == pytest.approx(2.0 * low)
    assert low <= held < high
    assert holds(SETTING, policy, 0.9 * held, [2], 5.0, safety=False)
    assert not holds(SETTING, policy, 1.3 * held, [2], 5.0, safety=False)


def test_no_bracket_where_nothing_is_held() -> None:
    """A search ends even if no rate is held."""
    short = replace(SETTING, deadline_s=0.001)
    assert bracket_rps(short, spec("static-large"), 10.0, [1], 1.5, safety=False) == (0.0, 0.0)


def test_late_answers_count_in_smooth_goodput_alone() -> None:
    """With soft deadlines beyond capacity, late work is discounted, not zeroed."""
    setting = soft(SETTING)
    rng = np.random.default_rng(1)
    workload = setting.workload(SCENARIOS["poisson"].make(150.0, 4.0, rng), 4.0, rng)
    run = simulate(setting.config(safety=False), workload, spec("static-large"), 1)
    found = outcome_of(run, 3, windowed=False)
    assert found.goodput_rps < found.smooth_goodput_rps < 150.0


def test_large_only_deployment_behaves_like_the_static_policy() -> None:
    """Tiers that nobody uses cost nothing: the deployment for the GPU count is the same."""
    alone = large_only(SETTING, 2)
    rng = np.random.default_rng(5)
    workload = SETTING.workload(SCENARIOS["poisson"].make(90.0, 4.0, rng), 4.0, rng)
    policy = PolicySpec.of(make_policy("static-large", alone.catalog))
    one = simulate(alone.config(safety=False), workload, policy, 1)
    two = simulate(SETTING.config(safety=False), workload, spec("static-large"), 1)
    assert one.performance() == pytest.approx(two.performance(), abs=1e-12)


def test_crossing_is_interpolated_and_ends_are_named() -> None:
    """0.9 between 1.0 at load 1 and 0.8 at load 2 is crossed at 1.5."""
    load, open_end = crossing([1.0, 2.0], [1.0, 0.8], 0.9)
    assert load == pytest.approx(1.5)
    assert not open_end
    assert crossing([1.0, 2.0], [0.5, 0.4], 0.9) == (0.0, False)
    assert crossing([1.0, 2.0], [1.0, 0.95], 0.9) == (2.0, True)


def test_windows_above_a_level_are_counted_and_empty_ones_left_out() -> None:
    """Of three windows with requests two are above 0.96, one above 0.98."""
    case = Case("windows", "w", 1.0, 100.0, 1, 41.0, ("price",), windowed=True)
    found = CaseResult(case, {("price", True): outcome(0.9, (0.97, 0.99, 0.5, np.nan))}, None)
    (row,) = window_rows([found])
    assert row["windows"] == 3
    assert row["above_96"] == pytest.approx(2 / 3, abs=1e-6)
    assert row["above_98"] == pytest.approx(1 / 3, abs=1e-6)


def test_fewest_windows_with_requests_are_stated() -> None:
    """Per workload, over its loads and policies."""
    rows = [
        {"workload": name, "load": load, "windows": count}
        for name, load, count in (("a", 0.1, 7), ("a", 1.0, 5), ("b", 0.1, 9))
    ]
    assert window_count_rows(rows) == [
        {"workload": "a", "windows": 5, "load": 1.0},
        {"workload": "b", "windows": 9, "load": 0.1},
    ]


def test_full_suite_has_200_windows_of_a_trace_with_requests_in_them() -> None:
    """At a rate below that of the lowest load on the shipped profile, where most are empty."""
    full = PLANS["full"]
    trace = fit_trace(open_trace("azure-llm-code-like"))
    context = Context({"": SETTING}, {}, {"t": replace(trace, lengths=None)})
    length_s = WARM_UP_S + WINDOW_S * full.trace_windows_per_seed
    count = 0
    for seed in evaluation_seeds(full.seed_count):
        case = Case("windows", "trace:t", 0.1, 1.5, seed, length_s, (), scenario="trace:t")
        arrival_N = case.workload(context).arrival_N
        window_N = ((arrival_N[arrival_N >= WARM_UP_S] - WARM_UP_S) // WINDOW_S).astype(int)
        count += len(np.unique(window_N))
    assert count >= 200


def test_regret_removed_is_worked_out_by_hand() -> None:
    """Price loses 0.2 and 0.4 against the bound, dqn 0.1 and 0.2: half of it is removed."""
    results = [
        result("burst", 1, {"price": 0.8, "dqn": 0.9}),
        result("square", 1, {"price": 0.6, "dqn": 0.8}),
        result("other", 1, {"price": 0.1, "dqn": 0.1}),
    ]
    rows = regret_rows(results, {"burst": "bursty", "square": "bursty"}, "price")
    removed = {row["policy"]: row["removed"] for row in rows}
    assert removed == {"price": pytest.approx(0.0), "dqn": pytest.approx(0.5)}
    assert rows[0]["regret"] == pytest.approx(0.3)


def test_regret_of_hopeless_points_is_left_out_where_asked() -> None:
    """At a point that always-small fails price loses 0.8; without it dqn removes half, not 1/6."""
    results = [
        result("burst", 1, {"price": 0.8, "dqn": 0.9}),
        result("markov", 1, {"price": 0.2, "dqn": 0.2}),
    ]
    small = [
        {"policy": "static-small", "shift": "burst", "load": 2.0, "safety_net": True,
         "availability": 0.98},
        {"policy": "static-small", "shift": "markov", "load": 2.0, "safety_net": True,
         "availability": 0.97},
        {"policy": "dqn", "shift": "markov", "load": 2.0, "safety_net": True, "availability": 1.0},
    ]  # fmt: skip
    points = coping_points(small, "static-small")
    families = {"burst": "bursty", "markov": "bursty"}
    everywhere = regret_rows(results, families, "price")
    coping = regret_rows(results, families, "price", points)
    removed = [
        next(r for r in rows if r["policy"] == "dqn")["removed"] for rows in (everywhere, coping)
    ]
    assert removed == [pytest.approx(0.1), pytest.approx(0.5)]
    assert [rows[0]["points"] for rows in (everywhere, coping)] == [2, 1]


def test_regret_is_shown_point_by_point() -> None:
    """Removed is the ratio of means; where price has no regret there is none to remove."""
    results = [
        *(result("burst", s, {"price": 1 - b, "dqn": 1 - b / 2}) for s, b in ((1, 0.2), (2, 0.4))),
        result("calm", 1, {"price": 1.0, "dqn": 0.99}),
    ]
    rows = {
        (row["shift"], row["policy"]): row
        for row in regret_point_rows(results, {"burst": "bursty"}, "price", {("burst", 2.0, True)})
    }
    burst, calm = rows["burst", "dqn"], rows["calm", "dqn"]
    assert burst["removed"] == pytest.approx(0.5)
    assert burst["removed_ci95"] == [pytest.approx(0.5), pytest.approx(0.5)]
    assert (burst["family"], burst["small_copes"]) == ("bursty", True)
    assert (calm["removed"], calm["small_copes"]) == (None, False)


def test_ratio_of_means_does_not_explode() -> None:
    """A seed with a denominator of nothing counts as every other: 3 / 1.5, not infinity."""
    values = ratio_of_means([2.0, 4.0], [0.0, 3.0])
    assert values.mean() == pytest.approx(2.0)
    np.testing.assert_allclose(values, [2.0 + 2.0 / 1.5, 2.0 - 2.0 / 1.5])


def gpu_row(ours: float, static: tuple[float, float]) -> dict[str, Any]:
    """Returns the row of a policy on 4 devices beside what 8 static ones serve in two seeds."""
    jobs = [GpuJob("dqn", True, 25.0, 1000.0, seed, 5.0) for seed in (1, 2)]
    counts = [GpuCount(ours, each, None, 60) for each in static]
    return gpu_rows(jobs, counts, 4)[0]


def test_ratio_per_gpu_is_of_means() -> None:
    """0.9 on 4 against a mean of 0.3 on 8 is six times as much per device."""
    row = gpu_row(0.9, (0.2, 0.4))
    assert row["per_gpu_ratio"] == pytest.approx(6.0)
    assert not row["static_serves_nothing"]


def test_ratio_against_nothing_is_flagged_and_not_a_number() -> None:
    """Eight GPUs that serve less than 0.1 % have no ratio; the paper's is reached all the same."""
    row = gpu_row(0.7, (0.0, 0.001))
    assert row["static_serves_nothing"]
    assert row["per_gpu_ratio"] is None
    report = {**headline_report(0.99), "per_gpu": [row]}
    found = {r["name"]: r for r in headlines(report, "dqn", "static-large", "static-small")}
    assert found["performance per GPU"]["met"] is True
    assert "static-large serves < 0.1% at loads 25 to 25" in found["performance per GPU"]["detail"]


def test_run_above_the_bound_is_a_violation() -> None:
    """It is listed with policy, seed and both numbers; one that equals the bound is not."""
    results = [result("a", 7, {"price": 0.9, "dqn": 0.8}, bound=0.8)]
    (row,) = violations(results)
    assert (row["policy"], row["seed"], row["performance"], row["bound"]) == ("price", 7, 0.9, 0.8)


def test_lost_device_is_gone_for_good_and_its_hardware_has_one_less() -> None:
    """The loss is inside the run; always-small's limit is that of the smaller fleet."""
    settings = shifted_settings(SETTING)
    shift = next(s for s in shifts_of(settings) if s.lost)
    (event,) = shift.events(9.0)
    assert event.kind == "lost"
    assert event.time_s == pytest.approx(3.0)
    available_C = settings[shift.hardware].fleet.arrays.availability_C
    assert available_C.sum() == SETTING.fleet.candidate_count / 2


def test_slower_hardware_is_slower_and_routers_know_it_only_where_said() -> None:
    """True costs are 1.3 times the profile's; what routers believe is either."""
    settings = shifted_settings(SETTING)
    believed = SETTING.fleet.arrays.step_s_C
    assert settings["slower"].profiles[""].tiers["large"].step_s == pytest.approx(1.3 * 0.0105)
    np.testing.assert_array_equal(settings["slower"].fleet.arrays.step_s_C, believed)
    known = settings["slower, known"].fleet.arrays.step_s_C
    np.testing.assert_allclose(known, 1.3 * believed)


def test_cases_with_the_same_requests_are_paired() -> None:
    """Two routers get the very requests that one gets; another label gets others."""
    context = Context({"": SETTING}, {})
    one = Case("shifts", "nominal", 2.0, 100.0, 1, 3.0, ())
    two = Case("shifts", "2 routers, stale", 2.0, 100.0, 1, 3.0, (), requests_of="nominal")
    own = Case("shifts", "2 routers, stale", 2.0, 100.0, 1, 3.0, ())
    arrivals = [case.workload(context).arrival_N for case in (one, two, own)]
    np.testing.assert_array_equal(arrivals[0], arrivals[1])
    assert not np.array_equal(arrivals[0], arrivals[2])


def test_seeds_and_loads_draw_requests_of_their_own() -> None:
    """No two runs of a sweep share their arrivals."""
    context = Context({"": SETTING}, {})
    first = Case("sweep", "poisson", 2.0, 100.0, 1, 3.0, ()).workload(context)
    seed = Case("sweep", "poisson", 2.0, 100.0, 2, 3.0, ()).workload(context)
    load = Case("sweep", "poisson", 3.0, 100.0, 1, 3.0, ()).workload(context)
    assert len({float(each.arrival_N[0]) for each in (first, seed, load)}) == 3


def test_tuned_variants_stand_beside_the_defaults() -> None:
    """A variant is the same kernel with the parameters tuning found, under a name of its own."""
    names = baseline_names(SETTING.catalog)
    assert names.index("price-tuned") == names.index("price") + 1
    default, tuned = (baseline(name, SETTING.catalog) for name in ("price", "price-tuned"))
    assert (tuned.spec.name, tuned.spec.kind) == ("price-tuned", default.spec.kind)
    assert not np.array_equal(tuned.spec.params_P, default.spec.params_P)
    with pytest.raises(UnknownPolicyError):
        baseline("round-robin-tuned", SETTING.catalog)
