"""Counts of a router are those of all its workers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from router.types import Priority, SloKind
from services.common.latency_buckets import quantile_s
from services.router_inference.job import Outcome, StepDown
from services.router_inference.records.accounts import (
    Accounts,
    Counts,
    TokenEnds,
    token_ends,
)
from services.router_inference.records.metrics import RouterMetrics
from services.router_inference.records.router_counts import (
    MOST_TASKS,
    RouterCounts,
    as_ended,
    counts_width,
)
from services.router_inference.workers.memory import Memory
from services.router_inference.workers.siblings import NoSiblings, SharedSiblings

TIERS = ("small", "large")
TASKS = ("copa", "piqa")


def counts_of(
    siblings: NoSiblings, offered: int, on_time: int, tasks: Sequence[str] = TASKS
) -> RouterCounts:
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
    accounts._rewards = {"copa": 0.5 * on_time}
    accounts._smooth = {"copa": 1.25 * on_time}
    accounts._of_tokens = {
        ("piqa", SloKind.FIRST_TOKEN, Outcome.LATE): 1,
        ("piqa", SloKind.PER_TOKEN, Outcome.ON_TIME): 4,
        ("piqa", SloKind.PER_TOKEN, Outcome.REFUSED): 1,
        ("piqa", SloKind.PER_TOKEN, Outcome.FAILED): 1,
        ("piqa", SloKind.PER_TOKEN, Outcome.CANCELLED): 5,
        ("boolq", SloKind.PER_TOKEN, Outcome.LATE): 9,
    }
    accounts._token_smooth = {
        ("piqa", SloKind.PER_TOKEN): 4.5,
        ("piqa", SloKind.FIRST_TOKEN): 0.25,
        ("boolq", SloKind.PER_TOKEN): 9.0,
    }
    return RouterCounts(accounts, TIERS, tasks, siblings)


COPA = [3.0, 0, 0, 0, 0, 1.5, 3.75, 0, 0, 0.0, 0, 0, 0.0, 0, 3]
PIQA = [0.0, 2, 1, 0, 5, 0.0, 0.0, 0, 1, 0.25, 4, 2, 4.5, 0, 2]
"""What one of them tells: on time, late, refused, failed, cancelled; reward, smooth; on time,
missed and smooth of deadlines for the first token, and for each token; small, large."""


def test_one_process_counts_for_itself() -> None:
    """As it counts them."""
    counts = counts_of(NoSiblings(), 5, 3)
    whole, by_tier = counts.read()
    assert (whole.offered, whole.on_time, counts.in_flight) == (5, 3, 2)
    assert by_tier == {"large": Counts(offered=3, on_time=3)}
    assert counts.by_task().tolist() == [COPA, PIQA]


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
    copa, piqa = [3.0 * each for each in COPA], [2.0 * each for each in PIQA]
    assert second.by_task().tolist() == [copa, piqa]


def test_a_row_tells_what_became_of_deadlines_for_tokens() -> None:
    """Each kind by itself; a kind that there was none of is left out."""
    assert token_ends(COPA) == []
    assert token_ends(PIQA) == [
        TokenEnds(SloKind.FIRST_TOKEN, 0, 1, 0.25),
        TokenEnds(SloKind.PER_TOKEN, 4, 2, 4.5),
    ]


def test_a_task_that_came_later_is_counted_too() -> None:
    """Settings that are read again may have one more; the others keep their place."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    first = counts_of(SharedSiblings(memory, 1), 5, 3)
    second = counts_of(SharedSiblings(memory, 2), 7, 6)
    first._accounts._requests["boolq", "large", Outcome.ON_TIME] = 4
    for counts in (first, second):
        counts.tasks = [*TASKS, "boolq"]
    first.show()
    assert second.by_task()[:, 0].tolist() == [9.0, 0.0, 4.0]


def test_what_a_killed_worker_had_under_way_has_failed() -> None:
    """Offered stays the sum of all ends and of what is under way."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    counts_of(SharedSiblings(memory, 1), 5, 3).show()
    memory.retire(1, as_ended)
    second = counts_of(SharedSiblings(memory, 2), 7, 6)
    whole, _ = second.read()
    assert (whole.offered, whole.on_time, whole.failed) == (12, 9, 2)
    assert second.in_flight == 1


def test_latencies_of_all_workers_add_up() -> None:
    """Those of a worker that was killed among them, as it showed them last."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    first = counts_of(SharedSiblings(memory, 1), 0, 0)
    second = counts_of(SharedSiblings(memory, 2), 0, 0)
    for counts, latency_s in ((first, 0.05), (second, 0.2)):
        answer(counts, latency_s)
        counts.show(is_last=True)
    memory.retire(1, as_ended)
    copa, piqa = second.latencies()
    assert copa[:-1].sum() == 2
    assert copa[-1] == 0
    assert quantile_s(copa[:-1].tolist(), 0, 0.5) == pytest.approx(0.05, rel=0.1)
    assert quantile_s(copa[:-1].tolist(), 0, 1.0) == pytest.approx(0.2, rel=0.1)
    # Two of each worker were late and have no complete answer.
    assert (piqa[:-1].sum(), piqa[-1]) == (0, 4)


def test_latencies_are_not_read_anew_for_every_report() -> None:
    """Reading them takes time in proportion to tasks and tiers; siblings see the last reading."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    first = counts_of(SharedSiblings(memory, 1), 0, 0)
    second = counts_of(SharedSiblings(memory, 2), 0, 0)
    first.latencies()
    answer(first, 0.05)
    first.show()
    assert second.latencies()[0, :-1].sum() == 0
    first.latencies()
    assert second.latencies()[0, :-1].sum() == 1


def answer(counts: RouterCounts, latency_s: float) -> None:
    """Has a worker answer a request of the first task."""
    job: Any = SimpleNamespace(
        tier="large",
        task=SimpleNamespace(name="copa"),
        request=SimpleNamespace(priority=Priority.LOW, slo_kind=SloKind.COMPLETE_ANSWER),
        reason="",
        step_down=StepDown.NONE,
        is_complete=True,
        arrival_s=0.0,
        end_s=latency_s,
    )
    counts._accounts.on_end(job, Outcome.ON_TIME, 1.0)


def test_priorities_of_all_workers_add_up() -> None:
    """A row for each class, from high to low, and a column for each end."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    workers = [counts_of(SharedSiblings(memory, number), 5, 3) for number in (1, 2)]
    for count, worker in enumerate(workers, 1):
        for _ in range(count):
            answer(worker, 0.1)
        worker.show()
    high, normal, low = workers[0].by_priority().tolist()
    assert high == normal == [0.0] * 5
    assert low == [3.0, 0.0, 0.0, 0.0, 0.0]
    # What stands before and after it is not touched.
    assert workers[0].by_task()[1].tolist() == [2.0 * each for each in PIQA]


def test_workers_add_up_what_clients_said_of_answers() -> None:
    """What a worker heard that ended stays; of tasks beyond the first none is told."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    gone = counts_of(SharedSiblings(memory, 1), 0, 0)
    gone.rate(1, 0, 0.5)
    gone.show()
    memory.retire(1, as_ended)
    first, second = (counts_of(SharedSiblings(memory, number), 0, 0) for number in (1, 2))
    first.rate(1, 0, 1.0)
    first.rate(MOST_TASKS, 0, 1.0)
    first.show()
    second.rate(0, 1, 0.25)
    found = second.ratings()
    assert found.answers.tolist() == [[0.0, 1.0], [2.0, 0.0]]
    assert found.mean.tolist() == [[0.0, 0.25], [0.75, 0.0]]
    assert found.square.tolist() == [[0.0, 0.0625], [0.625, 0.0]]
    assert first.latencies()[:, :-1].sum() == 0.0
    alone = counts_of(NoSiblings(), 0, 0)
    alone.rate(1, 0, 0.5)
    assert alone.ratings().mean.tolist() == [[0.0, 0.0], [0.5, 0.0]]


@pytest.mark.parametrize("tasks", [("piqa", "copa"), ("piqa",), ("new", "piqa", "copa")])
def test_counts_stay_those_of_their_task_in_whatever_order_workers_to_come_have_them(
    tasks: tuple[str, ...],
) -> None:
    """All workers of other settings count beside what those before them left."""
    memory = Memory(worker_count=2, counts_width=counts_width(TIERS))
    gone = counts_of(SharedSiblings(memory, 1), 0, 3)
    gone.rate(0, 1, 0.25)
    answer(gone, 0.05)
    gone.latencies()
    gone.show()
    memory.retire(1, as_ended)
    old = counts_of(SharedSiblings(memory, 2), 0, 0)
    old.rate(1, 1, 0.75)
    new = counts_of(SharedSiblings(memory, 1), 0, 0, tasks)
    new.rate(tasks.index("piqa"), 0, 0.5)
    new.show()
    for counts in (new, old):
        rows = dict(zip(counts.tasks, counts.by_task().tolist(), strict=True))
        assert rows["piqa"][1] == 4.0 + 2.0 * (counts is old)
        assert rows.get("copa", COPA)[0] == COPA[0] + ("copa" in rows)
        heard = dict(zip(counts.tasks, counts.ratings().answers.tolist(), strict=True))
        assert heard["piqa"] == [1.0, float(counts is old)]
        assert heard.get("copa", [0.0, 1.0]) == [0.0, 1.0]
        answered = dict(zip(counts.tasks, counts.latencies()[:, :-1].sum(axis=1), strict=True))
        assert answered["piqa"] == 0.0
        assert answered.get("copa", 1.0) == 1.0
        assert heard.get("new", [0.0, 0.0]) == [0.0, 0.0]
    assert new.tasks == tasks


def test_a_task_for_which_no_place_is_left_counts_nothing_among_workers() -> None:
    """Those of settings that are gone keep theirs."""
    memory = Memory(worker_count=1, counts_width=counts_width(TIERS))
    counts_of(SharedSiblings(memory, 1), 0, 0, [f"t{number}" for number in range(MOST_TASKS - 1)])
    counts = counts_of(SharedSiblings(memory, 1), 0, 3, ("piqa", "copa", "t1"))
    for task in range(3):
        counts.rate(task, 0, 0.5)
    assert counts.by_task()[:, 1].tolist() == [2.0, 0.0, 0.0]
    assert counts.ratings().answers[:, 0].tolist() == [1.0, 0.0, 1.0]
    assert counts.latencies()[:, -1].tolist() == [2.0, 0.0, 0.0]
