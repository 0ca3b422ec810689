"""What is known of the router processes whose records came: what they dropped, and how they ended.

A process that is stopped in order says so with its last record. One that is followed by another of
the same name, or is gone from the mesh, without having said so was cut: what it had not written yet
is lost, and nobody knows how much that was.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trainer.learning.online.joining import DecisionKey

ProcessKey = tuple[str, int]
"""Router id and epoch."""

_MOST_PROCESSES = 1_000
_OPEN, _ENDED, _CUT = range(3)


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What a router process told of its own records.

    Attributes:
        process: router and epoch.
        dropped_decisions: decisions it dropped unwritten since its start.
        dropped_outcomes: outcomes likewise.
        is_end: whether it has ended and writes no more.
        is_cut: whether somebody else says that it is gone.
    """

    process: ProcessKey
    dropped_decisions: int = 0
    dropped_outcomes: int = 0
    is_end: bool = False
    is_cut: bool = False

    @property
    def key(self) -> DecisionKey:
        """Key by which entries of the stream are acknowledged; decisions are numbered from 1."""
        return (*self.process, 0)


class ProcessBook:
    """The processes, of bounded number: the oldest are forgotten first, their counts are kept."""

    def __init__(self) -> None:
        """Starts empty."""
        # Of each process: decisions dropped, outcomes dropped, how it ended.
        self._known: dict[ProcessKey, list[int]] = {}
        self._open_of: dict[str, int] = {}
        # Sums over processes that were forgotten.
        self._past = [0, 0, 0]

    @property
    def dropped_decisions(self) -> int:
        """Decisions that routers told they had dropped."""
        return self._past[0] + sum(each[0] for each in self._known.values())

    @property
    def dropped_outcomes(self) -> int:
        """Outcomes that routers told they had dropped."""
        return self._past[1] + sum(each[1] for each in self._known.values())

    @property
    def cut_count(self) -> int:
        """Processes that were cut."""
        return self._past[2] + sum(each[2] == _CUT for each in self._known.values())

    @property
    def open(self) -> tuple[ProcessKey, ...]:
        """Processes of which more may come."""
        return tuple(self._open_of.items())

    def is_cut(self, process: ProcessKey) -> bool:
        """Returns whether a process is known to have been cut."""
        known = self._known.get(process)
        return known is not None and known[2] == _CUT

    def see(self, process: ProcessKey) -> None:
        """Notes that a record of a process came; cheap where the process is known."""
        if process not in self._known:
            self._begin(process)

    def take(self, record: ProcessRecord) -> None:
        """Takes in what was told; a record that comes again changes nothing."""
        if record.is_cut and record.process not in self._known:
            return
        self.see(record.process)
        known = self._known[record.process]
        known[0] = max(known[0], record.dropped_decisions)
        known[1] = max(known[1], record.dropped_outcomes)
        if record.is_end:  # also of one that was thought to be cut
            self._close(record.process, _ENDED)
        elif record.is_cut and known[2] == _OPEN:
            self._close(record.process, _CUT)

    def get_state(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        return {
            "past": list(self._past),
            "known": [[*process, *each] for process, each in self._known.items()],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores what `get_state` returned; raises LookupError, TypeError or ValueError else."""
        past = _counts(state["past"])
        known = {}
        for router, epoch, *numbers in state["known"]:
            if type(epoch) is not int:
                raise ValueError(f"processes: epoch {epoch!r:.40} is no whole number")
            known[str(router), epoch] = _counts(numbers)
        self._past, self._known = past, known
        self._open_of = {
            router: epoch for (router, epoch), each in known.items() if each[2] == _OPEN
        }

    def _begin(self, process: ProcessKey) -> None:
        router, epoch = process
        before = self._open_of.get(router)
        # What comes of a process after one of its name has begun is what that one had left behind.
        is_past = before is not None and before > epoch
        self._known[process] = [0, 0, _CUT if is_past else _OPEN]
        if not is_past:
            if before is not None:
                self._close((router, before), _CUT)
            self._open_of[router] = epoch
        if len(self._known) > _MOST_PROCESSES:
            oldest = next(iter(self._known))
            self._close(oldest, self._known[oldest][2])
            decisions, outcomes, end = self._known.pop(oldest)
            for index, count in enumerate((decisions, outcomes, end == _CUT)):
                self._past[index] += count

    def _close(self, process: ProcessKey, end: int) -> None:
        self._known[process][2] = end
        router, epoch = process
        if self._open_of.get(router) == epoch:
            del self._open_of[router]


def _counts(values: Iterable[Any]) -> list[int]:
    """Returns three counts; raises ValueError if they are none."""
    counts = list(values)
    if len(counts) != 3 or not all(type(each) is int and each >= 0 for each in counts):
        raise ValueError(f"processes: {counts!r:.40} are no three counts")
    return counts
