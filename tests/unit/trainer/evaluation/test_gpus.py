"""How many GPUs static-large needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from router.policies.table import make_policy
from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.evaluation.subjects import headline_report
from tests.unit.trainer.simulation.settings import spec
from trainer.evaluation.gpus import GpuCount, GpuJob, gpu_rows, large_only
from trainer.evaluation.headlines import headlines
from trainer.evaluation.scenarios import SCENARIOS
from trainer.simulation.simulate import PolicySpec, simulate

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


def test_large_only_deployment_behaves_like_the_static_policy() -> None:
    """Tiers that nobody uses cost nothing: the deployment for the GPU count is the same."""
    alone = large_only(SETTING, 2)
    rng = np.random.default_rng(5)
    workload = SETTING.workload(SCENARIOS["poisson"].make(90.0, 4.0, rng), 4.0, rng)
    policy = PolicySpec.of(make_policy("static-large", alone.catalog))
    one = simulate(alone.config(safety=False), workload, policy, 1)
    two = simulate(SETTING.config(safety=False), workload, spec("static-large"), 1)
    assert one.performance() == pytest.approx(two.performance(), abs=1e-12)


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
