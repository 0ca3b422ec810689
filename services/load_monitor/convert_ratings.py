"""What clients said of answers, as messages, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from router.quality import RatedTier, Rating
from services.common.checks import Checks, checks_of_stored
from services.load_monitor.model import RatingTable
from services.load_monitor.ratings import MOST_PROCESSES, MOST_RATED, Process
from tiercel.load_monitor.v1 import system_state_pb2 as state_pb2

MOST_TOLD_TASKS = 64
MOST_TOLD = 256
"""Tiers of tasks of which a router tells."""
LONGEST_ROUTER_ID = 128
_LARGEST_INT64 = 2**63 - 1
_MOST_STORED_BYTES = 64 * 1024 * 1024

_Tasks = Sequence[state_pb2.TaskRatings]


def table_from_message(
    bad: Checks, field: str, tasks: _Tasks, most_tasks: int, most: int
) -> RatingTable:
    """Checks ratings and returns them; only sensible if the checks passed.

    Args:
        bad: Notes what is wrong.
        field: Where they stand.
        tasks: The ratings.
        most_tasks: Most tasks.
        most: Most tiers of all tasks together.
    """
    found: dict[RatedTier, Rating] = {}
    if not bad.items(field, tasks, most_tasks):
        return found
    count = sum(len(task.tiers) for task in tasks)
    if not bad.require(count <= most, field, f"has {count} tiers", f"at most {most} tiers"):
        return found
    names: set[str] = set()
    for index, task in enumerate(tasks):
        at = f"{field}[{index}]"
        if bad.name(f"{at}.task", task.task):
            bad.require(task.task not in names, f"{at}.task", "is named twice")
        names.add(task.task)
        for place, each in enumerate(task.tiers):
            tier = f"{at}.tiers[{place}]"
            name = task.task, each.tier
            if bad.name(f"{tier}.tier", each.tier):
                bad.require(name not in found, f"{tier}.tier", "is named twice")
            bad.count(f"{tier}.rating_count", each.rating_count, low=1)
            bad.number(f"{tier}.mean", each.mean, 0.0, 1.0)
            bad.number(f"{tier}.mean_square", each.mean_square, 0.0, 1.0)
            found[name] = Rating(each.rating_count, each.mean, each.mean_square)
    return found


def messages_of_table(table: RatingTable) -> list[state_pb2.TaskRatings]:
    """Returns ratings as messages carry them."""
    by_task: dict[str, state_pb2.TaskRatings] = {}
    for (task, tier), (count, mean, square) in table.items():
        message = by_task.setdefault(task, state_pb2.TaskRatings(task=task))
        message.tiers.add(tier=tier, rating_count=count, mean=mean, mean_square=square)
    return list(by_task.values())


def readable(tasks: Iterable[state_pb2.TaskRatings]) -> RatingTable:
    """Returns what of another monitor's ratings can be some; the rest is left out."""
    found: dict[RatedTier, Rating] = {}
    for task in tasks:
        try:
            with checks_of_stored(ValueError) as bad:
                table = table_from_message(bad, "task_ratings", [task], 1, MOST_RATED)
        except ValueError:
            continue
        found.update(table)
    return dict(list(found.items())[:MOST_RATED])


def kept_ratings(table: RatingTable, counted: Mapping[Process, RatingTable]) -> bytes:
    """Returns the mesh's ratings, and what of which process is counted, as they are stored."""
    kept = state_pb2.KeptRatings(tasks=messages_of_table(table))
    for (router_id, epoch), each in counted.items():
        kept.counted.add(router_id=router_id, epoch=epoch, tasks=messages_of_table(each))
    return kept.SerializeToString(deterministic=True)


def read_kept(payload: bytes) -> tuple[RatingTable, dict[Process, RatingTable]]:
    """Returns what `kept_ratings` stored.

    Raises:
        ValueError: The bytes are something else.
    """
    if len(payload) > _MOST_STORED_BYTES:
        raise ValueError(f"stored ratings have {len(payload)} bytes")
    try:
        kept = state_pb2.KeptRatings.FromString(payload)
    except Exception as error:  # the parser's own error type is no part of its interface
        raise ValueError(f"not ratings: {error}") from error
    counted: dict[Process, RatingTable] = {}
    with checks_of_stored(ValueError) as bad:
        table = table_from_message(bad, "tasks", kept.tasks, MOST_RATED, MOST_RATED)
        if bad.items("counted", kept.counted, MOST_PROCESSES):
            for index, each in enumerate(kept.counted):
                at = f"counted[{index}]"
                bad.text(f"{at}.router_id", each.router_id, LONGEST_ROUTER_ID, 1)
                bad.count(f"{at}.epoch", each.epoch, _LARGEST_INT64, 1)
                counted[each.router_id, each.epoch] = table_from_message(
                    bad, f"{at}.tasks", each.tasks, MOST_TOLD_TASKS, MOST_TOLD
                )
    return table, counted
