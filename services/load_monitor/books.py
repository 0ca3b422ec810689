"""The mesh's books in this monitor: minutes are closed, stored for all to read, and read again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from services.common.books import Books, books_of, reckon
from services.common.clock import Clock
from services.common.errors import cut
from services.common.log import Logger
from services.common.state import keys
from services.common.state.errors import StateUnavailableError
from services.common.state.minute_store import MINUTE_S, MinuteStore
from services.load_monitor.broadcast import Broadcast
from services.load_monitor.convert_minutes import hindsight_of, minute_of
from services.load_monitor.coordination import Coordinator
from services.load_monitor.tally import Tally, start_of
from tiercel.load_monitor.v1 import minutes_pb2 as pb

_LOOK_S = 1.0
_AFTER_S = 0.05
"""How long after its end a minute is closed: its last reports are on their way."""
_OLDEST_PICTURE_S = 5.0
_HINDSIGHT_S = 10.0
"""Time between two looks for what trainers found out."""
_RECENT = 60
"""Minutes that this process remembers itself: they are there without Redis, and for metrics."""
_LATEST_HINDSIGHT = 5
"""Minutes after which a figure in hindsight is no news any more."""
_READ_COUNT = 500
_MOST_ANSWER_BYTES = 3 * 1024 * 1024
_MOST_TOLD = 100
_LONGEST_PROBLEM_BYTES = 500


class MinuteBooks:
    """Keeps the books.

    Every monitor closes its minutes; the one that publishes stores them. Lost is what of a minute
    no monitor watched, and what the store loses.

    Args:
        store: Where minutes are kept.
        broadcast: Gives the pictures that all monitors serve.
        coordinator: Tells whether this monitor publishes.
        clock: For stamps and waits.
        log: For a store that is away.
    """

    def __init__(
        self,
        *,
        store: MinuteStore,
        broadcast: Broadcast,
        coordinator: Coordinator,
        clock: Clock,
        log: Logger,
    ) -> None:
        self._store = store
        self._broadcast = broadcast
        self._coordinator = coordinator
        self._clock = clock
        self._log = log
        self._tally = Tally(clock.wall_ns())
        self._began_s = clock.monotonic_s()
        self._told: deque[tuple[int, str]] = deque(maxlen=_MOST_TOLD)
        self._recent: deque[pb.Minute] = deque(maxlen=_RECENT)
        self._unstored: deque[pb.Minute] = deque(maxlen=_RECENT)
        self._hindsight_due_s = 0.0
        self.last: tuple[Books | None, Books | None] = (None, None)
        """The last minute, and the last one with a figure in hindsight; None without requests."""

    async def run(self) -> None:
        """Keeps the books for ever."""
        while True:
            wall_s = self._clock.wall_ns() / 1e9
            left_s = MINUTE_S - wall_s % MINUTE_S + _AFTER_S
            await self._clock.sleep(min(_LOOK_S, left_s))
            await self.look()

    async def look(self) -> None:
        """Takes in the newest picture; stores and reads what is due."""
        picture = self._broadcast.latest
        if self._broadcast.age_s > _OLDEST_PICTURE_S:
            picture = None
        watched_s = self._clock.monotonic_s() - self._began_s
        minute = self._tally.take(picture, self._clock.wall_ns() / 1e9, watched_s)
        if minute is not None:
            self._recent.append(minute)
            if self._coordinator.is_publishing:
                self._unstored.append(minute)
        now_s = self._clock.monotonic_s()
        is_due = now_s >= self._hindsight_due_s
        if is_due:
            self._hindsight_due_s = now_s + _HINDSIGHT_S
        try:
            while self._unstored:
                oldest = self._unstored[0]
                payload = oldest.SerializeToString()
                await self._store.put(keys.MINUTE_BOOKS, start_of(oldest), payload)
                self._unstored.popleft()
            if is_due and self._recent:
                await self._read_hindsight(self._recent)
        except StateUnavailableError:
            pass  # shown by the coordinator, which asks the same Redis
        if minute is not None or is_due:
            self.last = self._newest()

    async def minutes(self, start_s: float, end_s: float) -> tuple[list[pb.Minute], int | None]:
        """Returns minutes that began in [start_s, end_s), in order of time.

        Returns:
            As many as fit an answer, and where to go on; None if these are all.
        """
        found = {start_of(each): each for each in self._recent if start_s <= start_of(each) < end_s}
        goes_on_s: float | None = None
        try:
            stored = await self._store.read(keys.MINUTE_BOOKS, start_s, end_s, _READ_COUNT)
            if len(stored) == _READ_COUNT:
                goes_on_s = stored[-1][0] + 1
                found = {minute_s: each for minute_s, each in found.items() if minute_s < goes_on_s}
            for minute_s, minute in self._parsed(stored):
                _keep_longer(found, minute_s, minute)
            await self._read_hindsight([found[minute_s] for minute_s in sorted(found)])
        except StateUnavailableError:
            pass  # what this process remembers is told
        told: list[pb.Minute] = []
        size = 0
        for minute_s in sorted(found):
            size += found[minute_s].ByteSize()
            if told and size > _MOST_ANSWER_BYTES:
                return told, minute_s
            told.append(found[minute_s])
        return told, None if goes_on_s is None else round(goes_on_s)

    def _parsed(self, stored: Iterable[tuple[int, bytes]]) -> Iterable[tuple[int, pb.Minute]]:
        for minute_s, payload in stored:
            try:
                minute = minute_of(payload)
            except ValueError as error:
                self._tell(minute_s, error)
                continue
            if start_of(minute) == minute_s:
                yield minute_s, minute

    def _tell(self, minute_s: int, error: ValueError) -> None:
        """Logs what is wrong with what stands in the store, once: it is met again at every look."""
        problem = cut(str(error), _LONGEST_PROBLEM_BYTES)
        if (minute_s, problem) not in self._told:
            self._told.append((minute_s, problem))
            self._log.error("stored_minute_unreadable", minute=minute_s, problem=problem)

    async def _read_hindsight(self, minutes: Iterable[pb.Minute]) -> None:
        """Adds what trainers found out to minutes that lack it."""
        lacking = {start_of(each): each for each in minutes if not each.HasField("hindsight")}
        if not lacking:
            return
        first, last = min(lacking), max(lacking)
        stored = await self._store.read(keys.MINUTE_HINDSIGHT, first, last + 1, 2 * _READ_COUNT)
        for minute_s, payload in stored:
            minute = lacking.get(minute_s)
            if minute is None or minute.HasField("hindsight"):
                continue
            try:
                minute.hindsight.CopyFrom(hindsight_of(payload))
            except ValueError as error:
                self._tell(minute_s, error)

    def _newest(self) -> tuple[Books | None, Books | None]:
        newest = list(self._recent)[-1:]
        late = list(self._recent)[-_LATEST_HINDSIGHT:]
        known = next((each for each in reversed(late) if reckon(each) is not None), None)
        return (
            books_of(newest) if newest and newest[0].tasks else None,
            books_of([known]) if known is not None else None,
        )


def _keep_longer(found: dict[int, pb.Minute], minute_s: int, minute: pb.Minute) -> None:
    """Keeps of two minutes of the same time the one that was watched longer."""
    known = found.get(minute_s)
    if known is None or known.observed.ToNanoseconds() < minute.observed.ToNanoseconds():
        found[minute_s] = minute
