"""Windows of unpredictable workloads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.trainer.evaluation import subjects
from tests.unit.trainer.evaluation.subjects import outcome
from trainer.evaluation.cases import WINDOW_S, Case, CaseResult
from trainer.evaluation.jobs import Context
from trainer.evaluation.plan import PLANS
from trainer.evaluation.scenarios import WARM_UP_S
from trainer.evaluation.seeds import evaluation_seeds
from trainer.evaluation.windows import (
    crossing,
    window_count_rows,
    window_rows,
)
from trainer.traces.fit import fit_trace
from trainer.traces.synthetic import open_trace

pytestmark = pytest.mark.timeout(300)  # the first run on a machine compiles
SETTING = subjects.setting()


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
