"""Counts by id what became of every decision: learned from, waiting, lost and told, or worse."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from tiercel.common.v1 import experience_pb2
from trainer.learning.checkpoint import load_checkpoint
from trainer.learning.online.joining import DecisionKey
from trainer.learning.online.processes import ProcessBook, ProcessKey
from trainer.learning.online.settled import SettledKeys

_SAME_TIME_S = 1e-6
"""Stamps of one decision, once as nanoseconds and once as a float of seconds, differ by less."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of the stream: what it holds, and whether the trainer has acknowledged it."""

    record: experience_pb2.ExperienceEntry
    is_acked: bool


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a trainer that starts now would know.

    Attributes:
        settled: decisions that were taken in.
        processes: router processes.
        dropped: records that were of no use, by reason.
        times_s: when the decisions in the replay were made, seconds since 1970, ascending.
    """

    settled: SettledKeys
    processes: ProcessBook
    dropped: Mapping[str, int]
    times_s: np.ndarray


@dataclasses.dataclass(frozen=True)
class Count:
    """What became of the decisions.

    Attributes:
        made: decisions made.
        settled: decisions that the saved state has taken in.
        replayed: transitions in the saved replay.
        waiting: decisions in the stream that are neither acknowledged nor taken in yet.
        missing: lost decisions that the saved state misses by their numbers.
        cut: lost decisions of processes that the saved state knows to have been cut.
        late: decisions taken in too late to be learned from.
        refused: decisions kept as dead letters.
        acked_unsaved: decisions acknowledged that the saved state lacks; must be 0.
        twice: transitions of a decision that is there already, or of none; must be 0.
        untold: lost decisions of which nothing that was saved tells; must be 0.
        untold_outcomes: decisions taken in whose outcome never came, beyond those counted as
            unanswered; must be 0.
        traceless: lost decisions of processes that were killed before they ever reached Redis.
        examples: some of those of which nothing tells.
    """

    made: int
    settled: int
    replayed: int
    waiting: int
    missing: int
    cut: int
    late: int
    refused: int
    acked_unsaved: int
    twice: int
    untold: int
    untold_outcomes: int
    traceless: int = 0
    examples: tuple[DecisionKey, ...] = ()

    @property
    def is_good(self) -> bool:
        """True if nothing happened that must not."""
        return not (self.acked_unsaved or self.twice or self.untold or self.untold_outcomes)


def read_saved(path: Path) -> Saved:
    """Reads what a trainer has saved; nothing if it never did."""
    settled, processes = SettledKeys(), ProcessBook()
    found = load_checkpoint(path)
    if found is None:
        return Saved(settled, processes, {}, np.zeros(0))
    meta, arrays = found
    settled.set_state(meta["settled"])
    processes.set_state(meta["processes"])
    with np.load(io.BytesIO(arrays["replay"].tobytes()), allow_pickle=False) as replay:
        times_s = np.sort(replay["time_B"])
    return Saved(settled, processes, meta["dropped"], times_s)


def key_of(record: experience_pb2.DecisionRecord | experience_pb2.OutcomeRecord) -> DecisionKey:
    """Returns the key of a record."""
    return (record.router_id, record.epoch, record.sequence)


def acked_unsaved(entries: Iterable[Entry], settled: SettledKeys) -> set[DecisionKey]:
    """Returns the decisions that are acknowledged and not in what is saved."""
    return {
        key
        for entry in entries
        if entry.is_acked and entry.record.HasField("decision")
        for key in [key_of(entry.record.decision)]
        if key not in settled
    }


def count(
    made: Collection[DecisionKey],
    entries: Collection[Entry],
    saved: Saved,
    refused: Collection[DecisionKey] = (),
) -> Count:
    """Counts by id.

    Args:
        made: every decision that was made.
        entries: everything that was ever written to the stream.
        saved: what the trainer has saved.
        refused: decisions among its dead letters.
    """
    written = {key_of(e.record.decision): e for e in entries if e.record.HasField("decision")}
    ended = {key_of(e.record.outcome) for e in entries if e.record.HasField("outcome")}
    settled = {key for key in made if key in saved.settled}
    unsaved = acked_unsaved(entries, saved.settled) - set(refused)
    waiting = written.keys() - settled - unsaved - set(refused)
    lost = defaultdict[ProcessKey, list[int]](list)
    for key in set(made) - settled - unsaved - waiting - set(refused):
        lost[key[:2]].append(key[2])
    highest = Counter[ProcessKey]()
    for key in settled:
        highest[key[:2]] = max(highest[key[:2]], key[2])
    heard = {_process_of(entry.record) for entry in entries}
    missing = cut = untold = traceless = 0
    examples: list[DecisionKey] = []
    for process, numbers in lost.items():
        inside = sum(number < highest[process] for number in numbers)
        missing += inside
        if saved.processes.is_cut(process):
            cut += len(numbers) - inside
        elif process not in heard:
            traceless += len(numbers)
        else:
            untold += len(numbers) - inside
            examples += [(*process, number) for number in numbers if number > highest[process]]
    # Those that wait now are missing by their numbers too, for a while.
    untold += max(0, missing - saved.settled.missing_count)
    unanswered = len(settled - ended)
    stamps_s = np.sort(
        [e.record.decision.decide_time.ToNanoseconds() / 1e9 for e in written.values()]
    )
    return Count(
        made=len(made),
        settled=len(settled),
        replayed=len(saved.times_s),
        waiting=len(waiting),
        missing=missing,
        cut=cut,
        late=saved.dropped.get("late", 0),
        refused=len(refused),
        acked_unsaved=len(unsaved),
        twice=_twice(saved.times_s, stamps_s),
        untold=untold,
        untold_outcomes=max(0, unanswered - saved.dropped.get("unanswered", 0)),
        traceless=traceless,
        examples=tuple(examples[:5]),
    )


def _process_of(entry: experience_pb2.ExperienceEntry) -> ProcessKey:
    record = getattr(entry, entry.WhichOneof("record") or "process")
    return (record.router_id, record.epoch)


def _twice(times_s: np.ndarray, stamps_s: np.ndarray) -> int:
    """Returns how many transitions are of a decision that has one, or of no decision."""
    if not len(stamps_s):
        return len(times_s)
    at = np.clip(np.searchsorted(stamps_s, times_s), 1, len(stamps_s) - 1)
    nearest = np.where(
        np.abs(stamps_s[at - 1] - times_s) <= np.abs(stamps_s[at] - times_s), at - 1, at
    )
    known = np.abs(stamps_s[nearest] - times_s) < _SAME_TIME_S
    return len(times_s) - len(np.unique(nearest[known]))
