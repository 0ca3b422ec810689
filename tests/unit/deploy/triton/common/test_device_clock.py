"""The clock that paced tiers of one device share."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from device_clock import GRACE_S, DeviceClock


class HandClock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def now(self) -> float:
        """Returns the time."""
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        """Lets time pass."""
        self.slept.append(duration_s)
        self.now_s += duration_s


@pytest.fixture
def time_() -> HandClock:
    """A hand-moved time."""
    return HandClock()


def _clock(path: Path, slot: int, time_: HandClock) -> DeviceClock:
    return DeviceClock(path / "gpu0.clock", slot, slot_count=16, now=time_.now, sleep=time_.sleep)


def test_idle_device_starts_when_the_work_became_available(
    tmp_path: Path, time_: HandClock
) -> None:
    """A late wake-up does not move the start: it is the moment the work came."""
    clock = _clock(tmp_path, 0, time_)
    turn = clock.take_turn(99.5, 0.01, lambda _: 0.2)
    assert turn is not None
    assert (turn.start_s, turn.end_s) == (99.5, 99.7)
    assert time_.slept == []


def test_busy_device_is_waited_for(tmp_path: Path, time_: HandClock) -> None:
    """A second tier starts exactly when the first one's iteration ends."""
    first, second = _clock(tmp_path, 0, time_), _clock(tmp_path, 1, time_)
    first.take_turn(100.0, 0.01, lambda _: 0.5)
    turn = second.take_turn(100.1, 0.01, lambda _: 0.25)
    assert turn is not None
    assert (turn.start_s, turn.end_s) == (100.5, 100.75)
    assert time_.now_s == pytest.approx(100.5)


def test_batch_is_composed_at_the_start(tmp_path: Path, time_: HandClock) -> None:
    """The batch is put together when the turn comes, not when it is asked for."""
    first, second = _clock(tmp_path, 0, time_), _clock(tmp_path, 1, time_)
    first.take_turn(100.0, 0.01, lambda _: 0.5)
    seen: list[tuple[float, float]] = []

    def compose(start_s: float) -> float:
        seen.append((start_s, time_.now_s))
        return 0.1

    second.take_turn(100.0, 0.01, compose)
    assert seen == [(100.5, 100.5)]


def test_oldest_claim_goes_first(tmp_path: Path, time_: HandClock) -> None:
    """A tier that waits already gets the device before one that asks again."""
    first, second = _clock(tmp_path, 0, time_), _clock(tmp_path, 1, time_)
    turn = first.take_turn(100.0, 0.01, lambda _: 0.5)
    assert turn is not None
    second._claim(100.2, 0.3)
    # The first tier asks again at its end; while it sleeps, the second one takes its turn.
    original = time_.sleep

    def sleep(duration_s: float) -> None:
        original(duration_s)
        if not taken:
            taken.append(second.take_turn(100.2, 0.3, lambda _: 0.3))

    taken: list[object] = []
    first._sleep = sleep
    time_.now_s = turn.end_s
    again = first.take_turn(turn.end_s, 0.01, lambda _: 0.5)
    assert again is not None
    assert again.start_s == pytest.approx(100.8)


def test_vanished_claimant_is_skipped(tmp_path: Path, time_: HandClock) -> None:
    """A tier whose process is gone holds the others up only for the grace time."""
    gone, alive = _clock(tmp_path, 0, time_), _clock(tmp_path, 1, time_)
    gone._claim(99.0, 0.01)
    turn = alive.take_turn(100.0, 0.01, lambda _: 0.1)
    assert turn is not None
    assert turn.start_s == 100.0
    assert time_.now_s <= 100.0 + 2 * GRACE_S


def test_nothing_to_do_leaves_the_device_free(tmp_path: Path, time_: HandClock) -> None:
    """A turn with an empty batch takes no time and leaves no claim."""
    first, second = _clock(tmp_path, 0, time_), _clock(tmp_path, 1, time_)
    assert first.take_turn(100.0, 0.01, lambda _: 0.0) is None
    turn = second.take_turn(100.0, 0.01, lambda _: 0.1)
    assert turn is not None
    assert turn.start_s == 100.0
    assert time_.slept == []


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 4096])
def test_damaged_file_starts_anew(tmp_path: Path, time_: HandClock, content: bytes) -> None:
    """A torn or foreign file does not keep the device busy."""
    (tmp_path / "gpu0.clock").write_bytes(content)
    turn = _clock(tmp_path, 0, time_).take_turn(100.0, 0.01, lambda _: 0.1)
    assert turn is not None
    assert turn.start_s == 100.0


def test_file_of_another_boot_starts_anew(
    tmp_path: Path, time_: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of another boot mean nothing; a device is not busy because of them."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr("device_clock._BOOT_ID", boot)
    boot.write_text("one")
    _clock(tmp_path, 0, time_).take_turn(100.0, 0.01, lambda _: 500.0)
    boot.write_text("two")
    turn = _clock(tmp_path, 1, time_).take_turn(100.0, 0.01, lambda _: 0.1)
    assert turn is not None
    assert turn.start_s == 100.0


def test_slot_out_of_range_is_refused(tmp_path: Path) -> None:
    """The limit is named."""
    with pytest.raises(ValueError, match="between 0 and 15"):
        DeviceClock(tmp_path / "clock", 16, slot_count=16)


def test_turns_never_overlap(tmp_path: Path) -> None:
    """Iterations of several tiers, run by real threads, follow each other without a gap lost."""
    turns: list[tuple[float, float]] = []
    duration_s, rounds, tiers = 0.002, 15, 3

    def work(slot: int) -> None:
        clock = DeviceClock(tmp_path / "gpu0.clock", slot, slot_count=16)
        ready_s = 0.0
        for _ in range(rounds):
            turn = clock.take_turn(ready_s, duration_s, lambda _: duration_s)
            assert turn is not None
            turns.append((turn.start_s, turn.end_s))
            ready_s = turn.end_s
        clock.close()

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(tiers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    turns.sort()
    assert len(turns) == rounds * tiers
    for (_, end_s), (start_s, _) in itertools.pairwise(turns):
        assert start_s >= end_s - 1e-9


def test_room_for_the_clock_is_taken_at_once(tmp_path: Path, time_: HandClock) -> None:
    """Writing to a hole would kill the process where the disk has become full."""
    clock = _clock(tmp_path, 0, time_)
    found = (tmp_path / "gpu0.clock").stat()
    assert found.st_blocks * 512 >= found.st_size
    clock.close()
