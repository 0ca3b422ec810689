"""Requests as routers write them to the experience stream."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from tiercel.common.v1 import common_pb2, experience_pb2
from trainer.profiling.served_fit import Served

START_S = 1_800_000_000.0
TIERS = ("small", "large")


def nanos(at_s: float) -> int:
    """A moment after START_S as nanoseconds since 1970."""
    return round(START_S) * 10**9 + round(at_s * 1e9)


def decision(request: Served, number: int, **fields: Any) -> experience_pb2.DecisionRecord:
    """The decision of a request, number by number."""
    record = experience_pb2.DecisionRecord(
        router_id="r",
        epoch=1,
        sequence=number,
        request_id=str(number),
        task="t",
        candidates=[
            common_pb2.Candidate(tier=tier, endpoint=f"on-{request.device}") for tier in TIERS
        ],
        action=TIERS.index(request.tier),
        prompt_token_count=int(request.prompt_tokens),
        **fields,
    )
    record.decide_time.FromNanoseconds(nanos(request.sent_s))
    record.slack.FromMilliseconds(2_000)
    return record


def outcome(request: Served, number: int, **fields: Any) -> experience_pb2.OutcomeRecord:
    """How it ended."""
    known: dict[str, Any] = {
        "status": common_pb2.OUTCOME_STATUS_ON_TIME,
        "output_token_count": request.output_tokens,
    }
    record = experience_pb2.OutcomeRecord(
        router_id="r", epoch=1, sequence=number, request_id=str(number), **(known | fields)
    )
    record.end_time.FromNanoseconds(nanos(request.end_s))
    record.latency.FromNanoseconds(round((request.end_s - request.sent_s) * 1e9))
    if math.isfinite(request.first_s):
        first_s = request.first_s - request.sent_s
        record.first_token_latency.FromNanoseconds(round(first_s * 1e9))
    if request.is_complete:
        record.served_by.tier, record.served_by.endpoint = request.tier, f"on-{request.device}"
    return record


def entries(
    *records: experience_pb2.DecisionRecord | experience_pb2.OutcomeRecord | None,
) -> list[experience_pb2.ExperienceEntry]:
    """Records as entries of the stream."""
    return [
        experience_pb2.ExperienceEntry(decision=each)
        if isinstance(each, experience_pb2.DecisionRecord)
        else experience_pb2.ExperienceEntry(outcome=each)
        for each in records
        if each is not None
    ]


def written(requests: Iterable[Served]) -> list[experience_pb2.ExperienceEntry]:
    """All of them, in the order in which routers would have written them."""
    stamped: list[tuple[float, experience_pb2.DecisionRecord | experience_pb2.OutcomeRecord]] = []
    for number, each in enumerate(requests, start=1):
        stamped.append((each.sent_s, decision(each, number)))
        stamped.append((each.end_s, outcome(each, number)))
    return entries(*(record for _, record in sorted(stamped, key=lambda pair: pair[0])))
