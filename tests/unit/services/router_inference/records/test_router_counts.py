"""Counts of a router are those of all its workers."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from services.router_inference.job import Outcome
from services.router_inference.records.accounts import Accounts, Counts, RouterMetrics
from services.router_inference.records.router_counts import (
    RouterCounts,
    as_ended,
    counts_width,
)
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings

TIERS = ("small", "large")
TASKS = ("copa", "piqa")


def counts_of(siblings: NoSiblings, offered: int, on_time: int) -> RouterCounts:
    """Returns the counts of a worker with so many requests, all by the large tier."""
    registry = CollectorRegistry()
    accounts = Accounts(RouterMetrics(registry), registry)
    accounts.counts.offered = offered
    accounts.counts.on_time = on_time
    accounts.counts.delivered_reward_sum = 0.5 * on_time
    accounts.tier_counts["large"] = Counts(offered=on_time, on_time=on_time)
    accounts._requests = {
        ("copa", "large", Outcome.ON_TIME): on_time,
        ("piqa", "large", Outcome.LATE): 2,
        ("piqa", "", Outcome.REFUSED): 1,
        ("piqa", "large", Outcome.CANCELLED): 5,
    }
    return RouterCounts(accounts, TIERS, TASKS, siblings)


def test_one_process_counts_for_itself() -> None:
    """As it counts them."""
    counts = counts_of(NoSiblings(), 5, 3)
    whole, by_tier = counts.read()
    assert (whole.offered, whole.on_time, counts.in_flight) == (5, 3, 2)
    assert by_tier == {"large": Counts(offered=3, on_time=3)}
    assert counts.by_task() == {"copa": (3, 0), "piqa": (0, 3)}


def test_workers_count_together() -> None:
    """Whoever is asked tells the sum, by tier too."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    first = counts_of(SharedSiblings(memory, 1), 5, 3)
    second = counts_of(SharedSiblings(memory, 2), 7, 6)
    first.show()
    whole, by_tier = second.read()
    assert whole == Counts(offered=12, on_time=9, delivered_reward_sum=4.5)
    assert by_tier == {"small": Counts(), "large": Counts(offered=9, on_time=9)}
    assert second.in_flight == 3
    assert second.by_task() == {"copa": (9, 0), "piqa": (0, 6)}


def test_a_task_that_came_later_is_counted_too() -> None:
    """Settings that are read again may have one more; the others keep their place."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    first = counts_of(SharedSiblings(memory, 1), 5, 3)
    second = counts_of(SharedSiblings(memory, 2), 7, 6)
    first._accounts._requests["boolq", "large", Outcome.ON_TIME] = 4
    for counts in (first, second):
        counts.tasks = [*TASKS, "boolq"]
    first.show()
    assert second.by_task() == {"copa": (9, 0), "piqa": (0, 6), "boolq": (4, 0)}


def test_what_a_killed_worker_had_under_way_has_failed() -> None:
    """Offered stays the sum of all ends and of what is under way."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    counts_of(SharedSiblings(memory, 1), 5, 3).show()
    memory.retire(1, as_ended)
    second = counts_of(SharedSiblings(memory, 2), 7, 6)
    whole, _ = second.read()
    assert (whole.offered, whole.on_time, whole.failed) == (12, 9, 2)
    assert second.in_flight == 1
