"""Turns on a device that several tiers share: one iteration each, strictly in order.

Triton runs every python model in a process of its own, and the system's scheduler would share a
processor among them in its own way: by time, not by iteration, and with favour for whoever slept
most. A GPU runs what is submitted to it in order, and latency profiles say so: tiers of a device
take turns by iteration. Here a tier that ends its iteration hands the device to the next one that
waits, so nobody is overtaken twice.

Standard library only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pathlib
import select
import struct
from types import TracebackType
from typing import Self

SLOT_COUNT = 16
FREE = -1
FILE_PREFIX = "tiercel-device-"
_HEADER = struct.Struct("<q")  # slot that holds the device, or FREE
_SLOT = struct.Struct("<qq")  # process id (0: unused), whether it waits
_SIZE = _HEADER.size + SLOT_COUNT * _SLOT.size
LOST_OWNER_CHECK_S = 0.25
"""How often a tier that waits looks whether the holder's process is still there."""


class DeviceTurnError(RuntimeError):
    """More tiers than a device has places for."""


class DeviceTurn:
    """One tier's place at its device; use it as ``with turn:`` around an iteration."""

    def __init__(self, path: pathlib.Path) -> None:
        """Takes a place.

        Args:
            path: The device's file on this machine, the same for all its tiers; made if missing.

        Raises:
            DeviceTurnError: Every place is taken by a living process.
        """
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lock()
        try:
            if os.fstat(self._fd).st_size < _SIZE:
                # Not a hole: writing to one in a map kills the process where the disk is full.
                os.posix_fallocate(self._fd, 0, _SIZE)
                self._map = mmap.mmap(self._fd, _SIZE)
                _HEADER.pack_into(self._map, 0, FREE)
            else:
                self._map = mmap.mmap(self._fd, _SIZE)
            self._slot = self._free_slot()
            self._fifo_path = _fifo(path, self._slot)
            self._fifo_path.unlink(missing_ok=True)
            os.mkfifo(self._fifo_path, 0o600)
            # Opened for both ends, so that neither opening nor writing ever waits for the other.
            self._fifo = os.open(self._fifo_path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            self._set(self._slot, os.getpid(), waits=False)
            if self._owner() == self._slot:
                # Left by the dead process whose place this was.
                _HEADER.pack_into(self._map, 0, FREE)
        finally:
            self._unlock()
        self._peers: dict[int, tuple[int, int]] = {}

    def close(self) -> None:
        """Gives the place up; the last one to go removes the files."""
        self._lock()
        self._set(self._slot, 0, waits=False)
        is_last = not any(self._get(slot)[0] for slot in range(SLOT_COUNT))
        self._fifo_path.unlink(missing_ok=True)
        if is_last:
            self._path.unlink(missing_ok=True)
        self._unlock()
        for fd, _ in self._peers.values():
            os.close(fd)
        os.close(self._fifo)
        self._map.close()
        os.close(self._fd)

    def __enter__(self) -> Self:
        """Waits for the turn."""
        self._lock()
        if self._is_free():
            _HEADER.pack_into(self._map, 0, self._slot)
            self._unlock()
            return self
        self._set(self._slot, os.getpid(), waits=True)
        self._unlock()
        while not self._handed_over():
            pass
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hands the device to the next tier that waits, or leaves it free."""
        self._lock()
        following = self._next_waiting()
        _HEADER.pack_into(self._map, 0, following)
        if following != FREE:
            pid, _ = self._get(following)
            self._set(following, pid, waits=False)
            self._wake(following, pid)
        self._unlock()

    def _handed_over(self) -> bool:
        """Waits for the hand-over; takes the device from a holder that died."""
        if select.select([self._fifo], [], [], LOST_OWNER_CHECK_S)[0]:
            os.read(self._fifo, 64)
        self._lock()
        try:
            if self._owner() == self._slot:
                return True
            if not self._is_free():
                return False
            _HEADER.pack_into(self._map, 0, self._slot)
            self._set(self._slot, os.getpid(), waits=False)
            return True
        finally:
            self._unlock()

    def _is_free(self) -> bool:
        owner = self._owner()
        return owner == FREE or not _is_alive(self._get(owner)[0])

    def _next_waiting(self) -> int:
        """The next slot in turn whose living process waits, FREE for none."""
        for offset in range(1, SLOT_COUNT):
            slot = (self._slot + offset) % SLOT_COUNT
            pid, waits = self._get(slot)
            if waits and _is_alive(pid):
                return slot
        return FREE

    def _wake(self, slot: int, pid: int) -> None:
        """Writes to a slot's pipe, opened once per process that sits there."""
        fd, known_pid = self._peers.get(slot, (-1, 0))
        if known_pid != pid:
            if fd >= 0:
                os.close(fd)
            fd = os.open(_fifo(self._path, slot), os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            self._peers[slot] = (fd, pid)
        os.write(fd, b".")

    def _free_slot(self) -> int:
        for slot in range(SLOT_COUNT):
            pid, _ = self._get(slot)
            if not pid or not _is_alive(pid):
                return slot
        raise DeviceTurnError(f"{self._path}: all {SLOT_COUNT} places are taken")

    def _owner(self) -> int:
        return int(_HEADER.unpack_from(self._map, 0)[0])

    def _get(self, slot: int) -> tuple[int, bool]:
        pid, waits = _SLOT.unpack_from(self._map, _HEADER.size + slot * _SLOT.size)
        return int(pid), bool(waits)

    def _set(self, slot: int, pid: int, *, waits: bool) -> None:
        _SLOT.pack_into(self._map, _HEADER.size + slot * _SLOT.size, pid, int(waits))

    def _lock(self) -> None:
        """Guards the file's content; held for microseconds.

        Freed by the system if its holder dies.
        """
        fcntl.lockf(self._fd, fcntl.LOCK_EX)

    def _unlock(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN)


def device_of_server(folder: pathlib.Path, server_pid: int) -> pathlib.Path:
    """Path of the device that one server's tiers share; files of servers that were killed go."""
    for path in folder.glob(f"{FILE_PREFIX}*"):
        owner = path.name.removeprefix(FILE_PREFIX).partition(".")[0]
        if owner.isascii() and owner.isdigit() and not _is_alive(int(owner)):
            path.unlink(missing_ok=True)
    return folder / f"{FILE_PREFIX}{server_pid}"


def _fifo(path: pathlib.Path, slot: int) -> pathlib.Path:
    return path.with_name(f"{path.name}.{slot}")


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
