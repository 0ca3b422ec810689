"""One clock for all paced tiers of a device, shared by their processes through a small file.

Triton runs every python model in a process of its own, so tiers that share a paced device meet in
a memory-mapped file. A tier with work claims a turn; when the device is free the oldest claim gets
it, composes its batch at that moment, and moves the device's time on by the iteration it chose.
Starts and ends are computed (`start = max(moment the work became available, device free)`), never
taken from when a process happened to wake up, so a late wake-up delays tokens but no time is lost.

Copied next to the paced `model.py`; standard library only.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MAGIC = 0x5449_4552_434C_4B31
_HEADER = struct.Struct("<QQd")  # magic, epoch of the machine's boot, free_s
_SLOT = struct.Struct("<dd")  # claim_s (infinite: none), least duration of the next iteration
_NO_CLAIM = float("inf")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# A claimant that has not woken this long after the device became free loses this turn: its
# process is gone, or so starved that the others should not wait for it.
GRACE_S = 0.02
_POLL_S = 0.0005
# A device that lies this far in the future was left by a process that is gone.
_LONGEST_RESERVATION_S = 600.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One iteration on the device, in seconds of the monotonic clock.

    Attributes:
        start_s: When it starts (computed, may lie a little in the past).
        end_s: When it ends; the caller sleeps until then.
    """

    start_s: float
    end_s: float


class DeviceClock:
    """One tier's view of its device's clock."""

    def __init__(
        self,
        path: Path,
        slot: int,
        *,
        slot_count: int,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Opens the file, or makes it; a file of an earlier boot starts anew.

        Args:
            path: The device's file, on a file system of this machine.
            slot: This tier's place in it, from 0, different for every tier of the device.
            slot_count: Places there are, the same for every tier of the device.
            now: Monotonic clock that all processes of the machine share.
            sleep: Waits a number of seconds.

        Raises:
            ValueError: The slot is out of range.
        """
        if not 0 <= slot < slot_count:
            raise ValueError(f"slot must be between 0 and {slot_count - 1} (got {slot})")
        self._slot_count = slot_count
        self._slot = slot
        self._now = now
        self._sleep = sleep
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._map = self._open_map()
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def take_turn(
        self, ready_s: float, least_duration_s: float, compose: Callable[[float], float]
    ) -> Turn | None:
        """Waits for this tier's turn and occupies the device with one iteration.

        Args:
            ready_s: When this tier's work became available.
            least_duration_s: The next iteration lasts at least this long; tells the others how
                long they may sleep.
            compose: Called with the start when the turn has come; puts the batch together and
                returns the iteration's duration in seconds, 0 when there is nothing to do.

        Returns:
            The turn, or None when there was nothing to do.
        """
        claim_s = ready_s
        self._claim(claim_s, least_duration_s)
        while True:
            with self._locked():
                free_s = self._free_s()
                now = self._now()
                wait_s = self._wait_s(claim_s, free_s, now)
                if wait_s <= 0.0:
                    start_s = max(ready_s, free_s)
                    duration_s = compose(start_s)
                    self._write_slot(self._slot, _NO_CLAIM, 0.0)
                    if duration_s <= 0.0:
                        return None
                    self._write_free_s(start_s + duration_s)
                    return Turn(start_s, start_s + duration_s)
                # Another tier may have dropped the claim of a process that woke too late.
                self._write_slot(self._slot, claim_s, least_duration_s)
            self._sleep(wait_s)

    def close(self) -> None:
        """Withdraws the claim and closes the file; the file itself stays for the other tiers."""
        with self._locked():
            self._write_slot(self._slot, _NO_CLAIM, 0.0)
        self._map.close()
        os.close(self._file)

    def _wait_s(self, claim_s: float, free_s: float, now: float) -> float:
        """Returns how long to sleep before looking again, 0 when it is this tier's turn.

        Claims that lie in the future of the device's free time do not count as ahead of it.
        """
        ahead = sorted(
            (claim, slot, least)
            for slot, (claim, least) in self._claims()
            if slot != self._slot and (claim, slot) < (claim_s, self._slot)
        )
        if now < free_s:
            # Nobody ahead can be done sooner, so looking earlier would be in vain.
            return free_s - now + sum(least for _, _, least in ahead)
        if not ahead:
            return 0.0
        if now > max(free_s, ahead[0][0]) + GRACE_S:
            for _, slot, _ in ahead:
                self._write_slot(slot, _NO_CLAIM, 0.0)
            return 0.0
        return _POLL_S

    def _claim(self, claim_s: float, least_duration_s: float) -> None:
        with self._locked():
            self._write_slot(self._slot, claim_s, least_duration_s)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _open_map(self) -> mmap.mmap:
        """Maps the file; writes a fresh one over what another boot or a torn write left."""
        epoch = _boot_epoch()
        size = _HEADER.size + self._slot_count * _SLOT.size
        if os.fstat(self._file).st_size != size:
            os.ftruncate(self._file, size)
        # Room is taken now: writing to a hole in a map kills the process where the disk is full.
        os.posix_fallocate(self._file, 0, size)
        memory = mmap.mmap(self._file, size)
        magic, found_epoch, free_s = _HEADER.unpack_from(memory, 0)
        is_stale = free_s > self._now() + _LONGEST_RESERVATION_S
        if (magic, found_epoch) != (_MAGIC, epoch) or is_stale:
            _HEADER.pack_into(memory, 0, _MAGIC, epoch, 0.0)
            for slot in range(self._slot_count):
                _SLOT.pack_into(memory, _HEADER.size + slot * _SLOT.size, _NO_CLAIM, 0.0)
        return memory

    def _free_s(self) -> float:
        free_s: float = _HEADER.unpack_from(self._map, 0)[2]
        return free_s

    def _write_free_s(self, free_s: float) -> None:
        struct.pack_into("<d", self._map, _HEADER.size - 8, free_s)

    def _claims(self) -> Iterator[tuple[int, tuple[float, float]]]:
        for slot in range(self._slot_count):
            claim_s, least_s = _SLOT.unpack_from(self._map, _HEADER.size + slot * _SLOT.size)
            if claim_s != _NO_CLAIM:
                yield slot, (claim_s, least_s)

    def _write_slot(self, slot: int, claim_s: float, least_duration_s: float) -> None:
        offset = _HEADER.size + slot * _SLOT.size
        _SLOT.pack_into(self._map, offset, claim_s, least_duration_s)


def _boot_epoch() -> int:
    """Returns a number of this boot: the monotonic clock means nothing across boots."""
    try:
        text = _BOOT_ID.read_text()
    except OSError:
        text = ""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
