"""What a report says: the facts of some minutes, ready for JSON, and a verdict."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from services.common.books import Books, TaskBooks, books_of
from services.common.times import seconds_of
from services.report.verdict import verdict
from tiercel.load_monitor.v1 import minutes_pb2 as pb

STEPS_S = {"minute": 60, "hour": 3600, "day": 86400}
"""What a report may be divided into."""
_DIGITS = 5


def report_facts(
    minutes: Sequence[pb.Minute], start_s: float, end_s: float, by: str = ""
) -> dict[str, Any]:
    """Returns what became of the requests.

    Args:
        minutes: Those known of the time, in order.
        start_s: Beginning of the time, seconds since 1970.
        end_s: Its end.
        by: Into what it is divided, one of `STEPS_S`; empty: not at all.
    """
    books = books_of(minutes)
    facts = {
        "start_time": moment_text(start_s),
        "end_time": moment_text(end_s),
        "watched_s": round(books.observed_s, 1),
        "total": _task(books.total, books),
        "tasks": {name: _task(each, books) for name, each in books.tasks.items()},
        "tiers": _tiers(books),
        "devices": _devices(books),
        "hindsight": {
            "minutes": books.reckoned_minutes,
            "of_minutes_with_requests": books.busy_minutes,
            "problems": dict(books.problems),
        },
        "by": by,
        "rows": [_row(part_s, part) for part_s, part in _parts(minutes, by)] if by else [],
    }
    facts["verdict"] = verdict(facts)
    return facts


def moment_text(wall_s: float) -> str:
    """Returns a moment to the minute, UTC."""
    return f"{datetime.datetime.fromtimestamp(wall_s, datetime.UTC):%Y-%m-%d %H:%M}"


def _tiers(books: Books) -> list[str]:
    """Returns the tiers that answered, as the first minutes name them."""
    names = (each.tier for m in books.minutes for task in m.tasks for each in task.answers)
    return list(dict.fromkeys(names))


def _devices(books: Books) -> dict[str, Any]:
    needed = books.static_large
    is_unreachable = needed is not None and math.isinf(needed)
    known = None if needed is None or is_unreachable else round(needed)
    had = round(books.device_count, 2)
    return {
        "mesh": had,
        "static_large": known,
        "is_unreachable": is_unreachable,
        "saved": None if known is None else round(known - had, 2),
    }


def _task(books: TaskBooks, whole: Books) -> dict[str, Any]:
    attained, answered = books.attained, books.answers.total()
    reckoned = books.reckoned
    has_latency = bool(books.task) and books.deadline_s is not None
    facts = {
        "offered": books.counts.total(),
        "ended": books.ended,
        **{name: books.counts[name] for name in ("on_time", "late", "refused", "failed")},
        "cancelled": books.counts["cancelled"],
        "in_time": attained,
        "target": books.target or None,
        "target_is_missed": attained is not None and attained < books.target,
        "minutes_below_target": books.missed_minutes,
        "minutes_with_target": books.told_minutes,
        "quality": books.performance,
        "largest_quality": books.largest / books.ended if books.ended else None,
        "given_up": books.given_up,
        "regret": reckoned.regret,
        "goodput_rps": _per_second(books.counts["on_time"], whole),
        "smooth_goodput_rps": _per_second(books.smooth_answers(), whole),
        "deadline_s": books.deadline_s,
        "deadline_is_of_first_token": books.is_first_token,
        "p50_s": _finite(books.latency_s(0.5)) if has_latency else None,
        "p99_s": _finite(books.latency_s(0.99)) if has_latency else None,
        "p50_is_cut_off": has_latency and books.latency_s(0.5) == math.inf,
        "p99_is_cut_off": has_latency and books.latency_s(0.99) == math.inf,
        "mix": {
            tier: books.answers[tier] / answered if answered else 0.0 for tier in _tiers(whole)
        },
    }
    return {name: _rounded(value) for name, value in facts.items()}


def _per_second(count: float | None, books: Books) -> float | None:
    return None if count is None or not books.observed_s else count / books.observed_s


def _row(start_s: int, minutes: Sequence[pb.Minute]) -> dict[str, Any]:
    books = books_of(minutes)
    total = books.total
    reckoned = total.reckoned
    bound = reckoned.bound / reckoned.ended if reckoned.ended else None
    row = {
        "start_time": moment_text(start_s),
        "watched_s": books.observed_s,
        "ended": total.ended,
        "in_time": total.attained,
        "quality": total.performance,
        "largest_quality": total.largest / total.ended if total.ended else None,
        "given_up": total.given_up,
        "bound": bound,
        "regret": reckoned.regret,
        "static_large_devices": _devices(books)["static_large"],
    }
    return {name: _rounded(value) for name, value in row.items()}


def _parts(minutes: Sequence[pb.Minute], by: str) -> Iterator[tuple[int, list[pb.Minute]]]:
    step_s = STEPS_S[by]
    for number, part in groupby(minutes, lambda each: int(seconds_of(each.start_time)) // step_s):
        yield number * step_s, list(part)


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _rounded(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value
