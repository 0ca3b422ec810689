"""Accounting of a load run."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.loadgen.records import (
    COLUMNS,
    STATUSES,
    RecordsError,
    RunRecords,
    run_summary,
    summarize,
)


def make(
    status: Any,
    *,
    latency_s: Any = 0.1,
    quality: Any = 1.0,
    lag_s: Any = 0.0,
    tier: Any = 0,
    phase: Any = 0,
    exact: Any = 1.0,
    priority: Any = 0,
) -> Any:
    """Records with one value per column where none is asked for."""
    count = len(status)
    values = {
        "intended_s": np.arange(count),
        "status": status,
        "latency_s": latency_s,
        "quality": quality,
        "lag_s": lag_s,
        "tier": tier,
        "phase": phase,
        "exact": exact,
        "priority": priority,
        "reason": -1,
        "answered": [each in (0, 1) for each in status],
    }
    columns = {
        name: np.broadcast_to(np.array(values.get(name, 0), dtype), (count,)).copy()
        for name, dtype in COLUMNS.items()
    }
    names = {
        "phase": ("calm", "burst"),
        "task": ("sort",),
        "tier": ("small", "large"),
        "endpoint": ("e",),
        "policy_version": ("greedy@1",),
        "reason": ("TOO_LATE",),
    }
    return RunRecords(columns, names, {"deadline_s": 0.5})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=60))
def test_every_request_is_counted_once(status: Any) -> None:
    """The five outcomes add up to the offered count, whatever happened."""
    summary = summarize(make(status))
    assert sum(summary[name] for name in STATUSES) == summary["offered"] == len(status)


def test_an_unknown_outcome_is_not_swallowed() -> None:
    """A row without an outcome fails the sum."""
    with pytest.raises(AssertionError, match="do not add up"):
        summarize(make([0, -1]))


def test_performance_counts_quality_only_of_answers_on_time() -> None:
    """Late answers earn nothing, refused requests stay in the denominator."""
    summary = summarize(make([0, 0, 1, 2], quality=[1.0, 0.5, 1.0, np.nan]))
    assert summary["performance"] == pytest.approx(1.5 / 4)
    assert summary["availability"] == pytest.approx(0.5)


def test_exact_performance_is_none_where_nothing_can_be_scored() -> None:
    """Unscorable tasks give no score rather than zero."""
    assert summarize(make([0], exact=np.nan))["exact_performance"] is None
    assert summarize(make([0, 0], exact=[1.0, 0.0]))["exact_performance"] == 0.5


def test_exact_performance_is_over_the_requests_that_can_be_scored() -> None:
    """A task without right answers does not lower it, and requests turned away do not raise it."""
    mixed = make([0, 0, 1, 2], exact=[1.0, np.nan, 1.0, 0.0])
    assert summarize(mixed)["exact_performance"] == pytest.approx(1 / 3)
    assert summarize(make([2, 4], exact=0.0))["exact_performance"] == 0.0


def test_percentiles_leave_out_refused_requests() -> None:
    """A quick refusal does not make the mesh look fast."""
    summary = summarize(make([0, 0, 2], latency_s=[0.2, 0.2, 0.001]))
    assert summary["p50_ms"] == pytest.approx(200)


def test_mix_counts_answered_requests() -> None:
    """Shares of tiers are over answers, and add up to 1."""
    summary = summarize(make([0, 0, 1, 4], tier=[0, 1, 1, 0]))
    assert summary["mix"] == pytest.approx({"small": 1 / 3, "large": 2 / 3})


def test_a_run_whose_generator_lagged_is_not_valid() -> None:
    """A p99 lag above a tenth of the deadline marks the run."""
    assert make([0] * 100, lag_s=0.049).is_valid
    assert not make([0] * 100, lag_s=0.051).is_valid


def test_lag_is_judged_by_each_requests_own_deadline() -> None:
    """What is nothing to a slow task spoils a quick one."""
    records = make([0] * 100, lag_s=0.02)
    of_tasks = dataclasses.replace(records, meta={"deadline_s": {"sort": 0.1, "other": 9.0}})
    assert records.is_valid
    assert not of_tasks.is_valid
    assert of_tasks.deadline_s.tolist() == [0.1] * 100


def test_phases_are_summed_up_apart() -> None:
    """Rows are counted in their own phase."""
    summary = run_summary(make([0, 1, 1], phase=[0, 1, 1]))
    assert summary["phases"]["calm"]["on_time"] == 1
    assert summary["phases"]["burst"]["late"] == 2


def test_priority_classes_are_summed_up_apart_where_there_are_several() -> None:
    """Each by its name; one class alone is the total."""
    mixed = run_summary(make([0, 1, 1], priority=[-1, 1, 1]))["priorities"]
    assert {name: each["late"] for name, each in mixed.items()} == {"high": 0, "low": 2}
    assert run_summary(make([0, 1], priority=[1, 1]))["priorities"] == {}


def test_records_without_priorities_are_of_normal_requests(tmp_path: Any) -> None:
    """As those of earlier versions are."""
    path = tmp_path / "run.npz"
    make([0, 1], priority=[-1, 1]).save(path)
    with np.load(path) as data:
        np.savez(path, **{name: data[name] for name in data if name != "priority"})
    assert RunRecords.load(path).columns["priority"].tolist() == [0, 0]


def test_records_survive_a_file(tmp_path: Any) -> None:
    """What is saved is what is loaded."""
    records = make([0, 1, 2], exact=[1.0, 0.0, np.nan])
    records.save(tmp_path / "run.npz")
    loaded = RunRecords.load(tmp_path / "run.npz")
    assert run_summary(loaded) == run_summary(records)


def test_deadlines_by_task_survive_a_file(tmp_path: Any) -> None:
    """Each is read back, and each must be above 0."""
    path = tmp_path / "records.npz"
    records = dataclasses.replace(make([0]), meta={"deadline_s": {"sort": 0.5}})
    records.save(path)
    assert RunRecords.load(path).deadline_s.tolist() == [0.5]
    dataclasses.replace(records, meta={"deadline_s": {"sort": 0.0}}).save(path)
    with pytest.raises(RecordsError, match="deadline_s is not above 0"):
        RunRecords.load(path)
    dataclasses.replace(records, meta={"deadline_s": {"piqa": 0.5}}).save(path)
    with pytest.raises(RecordsError, match="a task has no deadline_s"):
        RunRecords.load(path)


def test_a_damaged_file_is_named(tmp_path: Any) -> None:
    """A file that holds no records gives one clear error."""
    path = tmp_path / "run.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(RecordsError, match=r"run\.npz"):
        RunRecords.load(path)
