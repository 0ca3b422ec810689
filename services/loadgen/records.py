"""Records of a load run, one row per offered request, and their summary."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.types import Priority
from services.common.files import write_whole

STATUSES = ("on_time", "late", "refused", "cancelled", "failed")
"""How a request can end; a row's ``status`` is an index into it."""
ON_TIME, LATE, REFUSED, CANCELLED, FAILED = range(len(STATUSES))
MAX_LAG_SHARE = 0.1
"""A run whose 99th percentile of generator lag is above this share of the deadline is not valid."""
COLUMNS: Mapping[str, Any] = {
    "intended_s": np.float64,
    "lag_s": np.float32,
    "latency_s": np.float32,
    "first_token_s": np.float32,
    "status": np.int8,
    "phase": np.int16,
    "task": np.int16,
    "tier": np.int16,
    "endpoint": np.int16,
    "policy_version": np.int16,
    "reason": np.int16,
    "quality": np.float32,
    "exact": np.float32,
    "rescued": np.bool_,
    "retries": np.int8,
    "attempts": np.int8,
    "answered": np.bool_,
    "priority": np.int8,
}
NAMED = ("phase", "task", "tier", "endpoint", "policy_version", "reason")
"""Columns that are indexes into ``names[column]``; -1 means none."""


class RecordsError(ValueError):
    """A records file that cannot be read."""


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """One run.

    Attributes:
        columns: By name, each of shape [n]. ``intended_s`` is from the start of the run;
            ``latency_s`` counts from the intended send time to the answer or its failure, and so
            does ``first_token_s`` (streamed runs only, else NaN); ``lag_s`` is how late the
            generator itself was; ``attempts`` how many routers were asked; ``quality`` is the
            tier's table value, NaN where no tier answered; ``exact`` 1 or 0 by exact match, 0
            without an answer, NaN where the prompt has no right answer to compare with;
            ``priority`` is the class asked for, -1 high, 0 normal, 1 low.
        names: Per column of ``NAMED`` the texts its indexes stand for.
        meta: The run's spec, start stamp and machine facts, JSON-ready.
    """

    columns: Mapping[str, NDArray[Any]]
    names: Mapping[str, tuple[str, ...]]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        """Number of offered requests."""
        return len(self.columns["intended_s"])

    @property
    def deadline_s(self) -> NDArray[np.float64]:
        """Deadline of each request, in seconds; shape [n]."""
        stated = self.meta["deadline_s"]
        if not isinstance(stated, Mapping):
            return np.full(len(self), float(stated))
        by_index = np.array([float(stated[task]) for task in self.names["task"]])
        return by_index[self.columns["task"]] if len(self) else np.empty(0)

    def lag_s(self, quantile: float) -> float:
        """Generator lag at a quantile, in seconds; 0 for an empty run."""
        return _quantile(self.columns["lag_s"], quantile) or 0.0

    @property
    def is_valid(self) -> bool:
        """Whether the generator kept up: its p99 lag is at most a tenth of the deadline."""
        share = _quantile(self.columns["lag_s"] / self.deadline_s, 0.99)
        return (share or 0.0) <= MAX_LAG_SHARE

    def save(self, path: pathlib.Path) -> None:
        """Writes an npz file; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps({"names": self.names, "meta": self.meta})
        arrays: dict[str, Any] = {"head": np.array(head), **self.columns}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: pathlib.Path) -> RunRecords:
        """Reads a file of ``save``.

        Raises:
            RecordsError: The file is missing, damaged or of another kind.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                head = json.loads(str(data["head"]))
                columns = {name: data[name] for name in COLUMNS if name in data}
            # Records of earlier versions: all requests were normal.
            columns.setdefault("priority", np.zeros(columns["status"].shape, np.int8))
            names = {column: tuple(map(str, head["names"][column])) for column in NAMED}
            _check(columns, names)
            stated = head["meta"]["deadline_s"]  # of all requests, or by task
            for deadline_s in stated.values() if isinstance(stated, dict) else [stated]:
                if not 0.0 < float(deadline_s) < math.inf:
                    raise ValueError("deadline_s is not above 0")
            if isinstance(stated, dict) and not stated.keys() >= set(names["task"]):
                raise ValueError("a task has no deadline_s")
        except Exception as error:  # numpy and zipfile raise a dozen types
            raise RecordsError(f"{path}: not a records file: {error}") from None
        return cls(columns, names, head["meta"])

    def select(self, mask: NDArray[np.bool_]) -> RunRecords:
        """Keeps the rows of a mask of shape [n]."""
        columns = {name: values[mask] for name, values in self.columns.items()}
        return RunRecords(columns, self.names, self.meta)

    def phase(self, name: str) -> RunRecords:
        """Keeps the rows of the phases of one name."""
        wanted = [i for i, each in enumerate(self.names["phase"]) if each == name]
        return self.select(np.isin(self.columns["phase"], wanted))


def _check(columns: Mapping[str, NDArray[Any]], names: Mapping[str, tuple[str, ...]]) -> None:
    """Raises ValueError unless columns are of one length and their types, indexes within bounds."""
    (count,) = columns["status"].shape
    for name, dtype in COLUMNS.items():
        if columns[name].shape != (count,) or columns[name].dtype != dtype:
            raise ValueError(f"column {name} does not fit")
    bounds = {"status": (0, len(STATUSES)), "priority": (-1, 2)} | {
        name: (-1, len(names[name])) for name in NAMED
    }
    for name, (lowest, end) in bounds.items():
        if ((columns[name] < lowest) | (columns[name] >= end)).any():
            raise ValueError(f"column {name} has an index that names nothing")


def summarize(records: RunRecords) -> dict[str, Any]:
    """Counts and scores a run; every offered request is in exactly one of the five outcomes.

    Returns:
        JSON-ready: ``offered``, the five outcome counts, ``availability`` (share of offered on
        time), ``performance`` (mean over offered of table quality x on-time), ``exact_performance``
        (mean over those that can be scored of exact match x on-time; None if none can),
        ``p50_ms``/``p99_ms`` of requests answered or cut off at their deadline (a cut-off counts
        with the time it took, so a p99 near the deadline is a lower bound), ``mix`` (share of each
        tier among requests that a tier answered), ``reasons`` (of refused and failed), ``rescued``.

    Raises:
        AssertionError: The outcomes do not add up to the offered count.
    """
    status = records.columns["status"]
    offered = len(records)
    counts = {name: int(np.sum(status == i)) for i, name in enumerate(STATUSES)}
    assert sum(counts.values()) == offered, f"{counts} do not add up to {offered} offered requests"
    on_time = status == ON_TIME
    quality = np.nan_to_num(records.columns["quality"].astype(np.float64))
    timed = records.columns["latency_s"][(status == ON_TIME) | (status == LATE)]
    exact = records.columns["exact"].astype(np.float64)
    scored = int(np.sum(~np.isnan(exact)))
    return {
        "offered": offered,
        **counts,
        "availability": counts["on_time"] / offered if offered else None,
        "performance": float(np.sum(quality * on_time)) / offered if offered else None,
        "exact_performance": (
            float(np.sum(np.nan_to_num(exact) * on_time)) / scored if scored else None
        ),
        "p50_ms": _milliseconds(_quantile(timed, 0.5)),
        "p99_ms": _milliseconds(_quantile(timed, 0.99)),
        "mix": _mix(records),
        "reasons": _reasons(records),
        "rescued": int(np.sum(records.columns["rescued"])),
    }


def run_summary(records: RunRecords) -> dict[str, Any]:
    """Summarizes a run: total, phases by name, the generator's lag, whether it may be used.

    ``planned`` is how many requests were to be sent, ``interrupted`` whether fewer were.

    Where requests of several priority classes were sent, each has a summary too.
    """
    phase_names = list(dict.fromkeys(records.names["phase"]))
    place = records.columns["priority"]
    by_class = {each.label: records.select(place == each) for each in Priority}
    asked = {name: summarize(found) for name, found in by_class.items() if len(found)}
    return {
        "total": summarize(records),
        "phases": {name: summarize(records.phase(name)) for name in phase_names},
        "priorities": asked if len(asked) > 1 else {},
        "generator_lag_p50_ms": _milliseconds(records.lag_s(0.5)),
        "generator_lag_p99_ms": _milliseconds(records.lag_s(0.99)),
        "deadline_s": records.meta["deadline_s"],
        "planned": records.meta.get("planned", len(records)),
        "interrupted": bool(records.meta.get("interrupted", False)),
        "valid": records.is_valid,
        "policy_versions": list(records.names["policy_version"]),
    }


def _mix(records: RunRecords) -> dict[str, float]:
    answered = records.columns["tier"][records.columns["answered"]]
    total = len(answered)
    tiers = records.names["tier"]
    return {
        name: float(np.sum(answered == i)) / total if total else 0.0 for i, name in enumerate(tiers)
    }


def _reasons(records: RunRecords) -> dict[str, int]:
    column = records.columns["reason"]
    counts = {name: int(np.sum(column == i)) for i, name in enumerate(records.names["reason"])}
    return {name: count for name, count in counts.items() if count}


def _quantile(values: NDArray[Any], quantile: float) -> float | None:
    return float(np.quantile(values, quantile)) if len(values) else None


def _milliseconds(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s * 1e3, 3)
