"""What workers of a router have seen of a trial is added up by the one that reports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.router_inference.policy.trial_counts import (
    REASON_MISSES,
    ArmCounts,
    CanaryCounts,
    PeriodCounts,
    ShadowCounts,
    SwitchCounts,
    TrialSeen,
    reported,
    row_of,
)
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import SharedSiblings


def canary(number: int, value: float, problem: str = "") -> TrialSeen:
    """Returns what a worker has seen of a canary."""
    counts = CanaryCounts(canary=ArmCounts(3, 1, 2.0, 0.5), control=ArmCounts(4, 0, 3.0, 0.25))
    counts.values.add(True, value)
    return TrialSeen(number, True, problem, "", None, counts)


def test_siblings_of_the_same_stage_are_added() -> None:
    """Others are of another rollout, of another stage, or have no trial."""
    rows = [row_of(canary(7, 0.5)), row_of(canary(6, 0.5)), row_of(None)]
    rows.append(row_of(TrialSeen(7, False, "", "", ShadowCounts(decisions=9), None)))
    found = reported(canary(7, 0.25), rows)
    numbers = found.numbers
    assert (found.rollout, found.is_canary, found.problem) == (7, True, "")
    assert (numbers["request_count"], numbers["control_value_sum"]) == (6, 6.0)
    assert (numbers["effect_count"], numbers["effect_total"]) == (2, 1.5)


def test_what_stopped_a_sibling_is_told() -> None:
    """Its reason, whatever this worker saw; a refusal every worker meets itself."""
    found = reported(canary(7, 0.5), [row_of(canary(7, 0.5, REASON_MISSES))])
    assert found.problem == REASON_MISSES
    refused = row_of(canary(7, 0.5, "SNAPSHOT_MALFORMED"))
    assert reported(canary(7, 0.5), [refused]).problem == ""


def test_it_goes_through_shared_memory() -> None:
    """A worker shows its row, and its siblings read it."""
    memory = Memory(worker_count=2, counts_width=1)
    first, second = SharedSiblings(memory, 1), SharedSiblings(memory, 2)
    first.show_trial(row_of(canary(7, 0.5)))
    assert reported(canary(7, 0.5), second.other_trials()).numbers["request_count"] == 6
    first.show_trial(row_of(None))
    assert reported(canary(7, 0.5), second.other_trials()).numbers["request_count"] == 3


def switch_row(number: int, period: int, requests: int, reward: float) -> NDArray[np.float64]:
    """Returns what a worker shows of a switchback."""
    counts = SwitchCounts(period, PeriodCounts(requests, 1, reward), PeriodCounts(5, 0, 4.0))
    return row_of(TrialSeen(number, True, "", "", None, None, counts))


def test_workers_add_up_what_they_saw_of_a_period() -> None:
    """The number of the period is no count; one that has not turned yet is left out."""
    own = TrialSeen(7, True, "", "", None, None, SwitchCounts(3, PeriodCounts(10, 1, 8.0)))
    rows = [switch_row(7, 3, 20, 15.0), switch_row(7, 2, 99, 99.0), switch_row(6, 3, 99, 99.0)]
    rows.append(row_of(TrialSeen(7, True, "", "", None, CanaryCounts(faults=9))))
    numbers = reported(own, rows).numbers
    assert (numbers["period"], numbers["request_count"], numbers["missed_count"]) == (3, 30, 2)
    assert (numbers["reward_sum"], numbers["last_request_count"]) == (23.0, 5)
    assert numbers["fault_count"] == 0
