"""A hundred kills in one process, counted by id."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from tests.faults import kills
from tests.faults.counting import Entry, Saved, count
from tests.faults.simulated_kills import VICTIMS, simulate
from tiercel.common.v1 import experience_pb2
from trainer.learning.online.joining import DecisionKey
from trainer.learning.online.processes import ProcessBook, ProcessRecord
from trainer.learning.online.settled import SettledKeys


@pytest.mark.timeout(300)
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Nothing acknowledged is unsaved, nothing counts twice, and whatever is lost is told."""
    found = simulate(100, seed=1, rate_rps=5.0, folder=tmp_path)
    assert set(found.kills) == set(VICTIMS)
    assert sum(found.kills.values()) == 100
    assert found.count.is_good, found.count
    assert found.unsaved_at_kills == 0
    assert found.count.traceless <= 0.01 * found.count.made
    # The kills bit, and most was learned from all the same.
    assert found.count.missing + found.count.cut > 0
    assert found.count.settled > 0.8 * found.count.made
    assert found.count.replayed > 0.8 * found.count.settled


def _entry(sequence: int, *, is_acked: bool) -> Entry:
    record = experience_pb2.ExperienceEntry()
    record.decision.router_id, record.decision.epoch, record.decision.sequence = "r", 1, sequence
    record.decision.decide_time.seconds = sequence
    return Entry(record, is_acked)


def _saved(*sequences: int, times_s: tuple[float, ...] = (), unanswered: int = 9) -> Saved:
    settled = SettledKeys([("r", 1, each) for each in sequences])
    return Saved(settled, ProcessBook(), {"unanswered": unanswered}, np.array(sorted(times_s)))


def _made(count: int) -> list[DecisionKey]:
    return [("r", 1, sequence) for sequence in range(1, count + 1)]


def test_the_count_sees_what_is_acknowledged_and_not_saved() -> None:
    """It is what must never be."""
    found = count(_made(2), [_entry(n, is_acked=True) for n in (1, 2)], _saved(1))
    assert (found.settled, found.acked_unsaved, found.waiting) == (1, 1, 0)
    assert not found.is_good


def test_the_count_sees_what_is_in_the_replay_twice() -> None:
    """Transitions are told by the time of their decision."""
    entries = [_entry(n, is_acked=False) for n in (1, 2, 3)]
    assert count(_made(3), entries, _saved(1, 2, times_s=(1.0, 2.0))).twice == 0
    assert count(_made(3), entries, _saved(1, 2, times_s=(1.0, 2.0, 2.0))).twice == 1
    assert count(_made(3), entries, _saved(1, 2, times_s=(1.0, 2.5))).twice == 1


def test_the_count_sees_what_was_lost_and_never_told() -> None:
    """A missing number tells of itself, the last ones only where the process is known as cut."""
    entries = [_entry(n, is_acked=True) for n in (1, 3)]
    found = count(_made(4), entries, _saved(1, 3))
    assert (found.missing, found.cut, found.untold) == (1, 0, 1)
    saved = _saved(1, 3)
    saved.processes.see(("r", 1))
    saved.processes.take(ProcessRecord(("r", 1), is_cut=True))
    found = count(_made(4), entries, saved)
    assert (found.missing, found.cut, found.untold) == (1, 1, 0)


def test_the_count_sees_outcomes_that_nobody_counted_as_missing() -> None:
    """A decision without its outcome has to be among the unanswered."""
    entries = [_entry(n, is_acked=True) for n in (1, 2)]
    assert count(_made(2), entries, _saved(1, 2, unanswered=2)).untold_outcomes == 0
    assert count(_made(2), entries, _saved(1, 2, unanswered=1)).untold_outcomes == 1


@pytest.mark.parametrize(
    ("killed", "answered", "taken", "missing", "said"),
    [
        (3, 50, (1,), "", ""),
        (2, 50, (1,), "", "2 of 3 kills, then the time was up"),
        (3, 0, (1,), "", "no request was answered"),
        (3, 50, (), "", "the trainer took in nothing"),
        (3, 50, (1,), "trainer", "not whole again: trainer"),
    ],
)
def test_a_run_that_could_show_nothing_is_not_good(
    killed: int,
    answered: int,
    taken: tuple[int, ...],
    missing: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is lost where nothing was made or taken in, nor where nobody was killed."""
    counted = count(_made(1), [_entry(1, is_acked=bool(taken))], _saved(*taken))
    assert counted.is_good
    found = kills.Found({"redis": killed}, answered, counted, missing)
    assert kills._tell(found, Namespace(kills=3, record=False)) == bool(said)
    verdict = f"NOT as it must be: {said}" if said else "as it must be"
    assert capsys.readouterr().err.splitlines()[-1] == verdict
