"""Rows of a load run: noted raw while it lasts, decoded into records when it is over."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np

from services.loadgen.arrivals import Arrivals
from services.loadgen.prompts import Prompt
from services.loadgen.records import COLUMNS, LATE, NAMED, ON_TIME, RunRecords
from tiercel import errors
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb


@dataclasses.dataclass(slots=True)
class Row:
    """What happened to one request; decoded when the run is over.

    Attributes:
        lag_s: How late it was sent.
        latency_s: From its intended send time to its end.
        first_token_s: The same to its first chunk; NaN if none was seen.
        message_s: The same to each message of its stream, where each token has a due time.
        status: Index into ``records.STATUSES``; -1 while under way.
        payload: Raw GenerateResponse, or the raw stream messages.
        error: The RPC's failure.
        attempts: Routers asked.
        reason: Reason given on this side, where there is no RPC failure to take it from.
    """

    lag_s: float = 0.0
    latency_s: float = math.nan
    first_token_s: float = math.nan
    message_s: list[float] = dataclasses.field(default_factory=list)
    status: int = -1
    payload: bytes | list[bytes] | None = None
    error: grpc.aio.AioRpcError | None = None
    attempts: int = 0
    reason: str = ""


def latest_token_s(row: Row, interval_s: float) -> float:
    """Returns when the latest token of a stream came, less what it was due after the first one.

    Args:
        row: Its row, complete.
        interval_s: Time between the due times of two tokens.
    """
    latest_s, count = -math.inf, 0
    messages = row.payload if isinstance(row.payload, list) else []
    for message, came_s in zip(messages, row.message_s, strict=True):
        event = pb.GenerateStreamResponse.FromString(message)
        if event.WhichOneof("event") == "chunk":
            latest_s = max(latest_s, came_s - count * interval_s)
            count += event.chunk.token_count
    return latest_s if count else row.latency_s


def make_records(
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    arrivals: Arrivals,
    priorities: Sequence[int],
    meta: dict[str, Any],
) -> RunRecords:
    """Decodes the rows of a run.

    Args:
        rows: What was sent, in order; fewer than planned if the run was stopped.
        prompts: What was planned to be sent.
        arrivals: When it was.
        priorities: Classes it was to have.
        meta: The records' ``meta``.
    """
    table = _Table([phase.name for phase in arrivals.phases])
    for row, prompt in zip(rows, prompts, strict=False):
        table.add(row, prompt)
    table.columns["intended_s"] = arrivals.arrival_s[: len(rows)].tolist()
    table.columns["phase"] = arrivals.phase_index[: len(rows)].tolist()
    table.columns["priority"] = list(priorities[: len(rows)])
    return table.records(meta)


class _Table:
    """Rows become columns; texts become indexes."""

    def __init__(self, phases: list[str]) -> None:
        self.columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        self._names: dict[str, dict[str, int]] = {name: {} for name in NAMED}
        self._phases = phases

    def add(self, row: Row, prompt: Prompt) -> None:
        """Adds a row, its payload decoded."""
        text, completion = _decode(row.payload)
        reason = row.reason or (_reason_of(row.error) if row.error else "")
        served = completion is not None and row.status in (ON_TIME, LATE)
        add = self.columns
        add["lag_s"].append(row.lag_s)
        add["latency_s"].append(row.latency_s)
        add["first_token_s"].append(row.first_token_s)
        add["status"].append(row.status)
        add["attempts"].append(row.attempts)
        add["task"].append(self._index("task", prompt.task))
        add["reason"].append(self._index("reason", reason))
        add["answered"].append(served)
        if completion is None or not served:
            completion = pb.Completion(quality=math.nan)
        add["tier"].append(self._index("tier", completion.tier))
        add["endpoint"].append(self._index("endpoint", completion.endpoint))
        policy, version = completion.policy, completion.policy_version
        label = version if version.startswith(policy) else f"{policy}@{version}"
        add["policy_version"].append(self._index("policy_version", label))
        add["quality"].append(completion.quality)
        add["exact"].append(prompt.score(text if served else None))
        add["rescued"].append(completion.rescued)
        add["retries"].append(min(completion.retry_count, 127))

    def records(self, meta: dict[str, Any]) -> RunRecords:
        """Builds the arrays."""
        columns = {name: np.array(self.columns[name], dtype) for name, dtype in COLUMNS.items()}
        names = {name: tuple(self._names[name]) for name in NAMED}
        names["phase"] = tuple(self._phases)
        return RunRecords(columns, names, meta)

    def _index(self, column: str, name: str) -> int:
        if not name:
            return -1
        known = self._names[column]
        return known.setdefault(name, len(known))


def _decode(payload: bytes | list[bytes] | None) -> tuple[str, pb.Completion | None]:
    """Text and completion of an answer; no completion if its stream broke off."""
    if isinstance(payload, bytes):
        response = pb.GenerateResponse.FromString(payload)
        return response.text, response.completion
    text, completion = "", None
    for message in payload or ():
        event = pb.GenerateStreamResponse.FromString(message)
        if event.WhichOneof("event") == "chunk":
            text += event.chunk.text
        else:
            completion = event.completion
    return text, completion


def _reason_of(error: grpc.aio.AioRpcError) -> str:
    failure = errors.from_rpc_error(error)
    if failure.details.reason:
        return failure.details.reason
    return f"{errors.TRANSPORT_REASON}_{error.code().name}"
