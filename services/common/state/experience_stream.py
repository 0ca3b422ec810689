"""The experience stream: routers append, trainers read as a group and acknowledge."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from redis.exceptions import ResponseError

from services.common.clock import Clock
from services.common.state import keys
from services.common.state.errors import StateUnavailableError
from services.common.state.redis_connection import DeadLetter, RedisConnection, milliseconds

FIRST_ID = "0-0"
"""An id that all entries are behind."""
_FIELD = b"e"
_KIND = "experience"


class StreamEntry(NamedTuple):
    """One entry of the experience stream.

    Args:
        entry_id: Its id, for the acknowledgement.
        payload: A serialized ExperienceEntry.
    """

    entry_id: str
    payload: bytes


class ExperienceStream(Protocol):
    """The stream; a method that cannot answer raises StateUnavailableError within its timeout."""

    async def append(self, payloads: Sequence[bytes]) -> None:
        """Appends serialized ExperienceEntry messages; the oldest entries give way."""
        ...

    async def read(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns up to `count` entries that no consumer of the group has had.

        Waits up to `block_s` seconds for the first.
        """
        ...

    async def behind(self, entry_id: str, count: int) -> list[StreamEntry]:
        """Returns up to `count` entries behind an id, whoever has had them, and marks none.

        Ids begin with the time at which entries were appended, milliseconds since 1970.
        """
        ...

    async def newest_id(self) -> str:
        """Returns the id of the newest entry, `0-0` if there is none."""
        ...

    async def ack(self, group: str, entry_ids: Sequence[str]) -> int:
        """Marks entries as safely taken in; returns how many were marked."""
        ...

    async def claim_stale(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over entries read at least `min_idle_s` seconds ago and never acknowledged.

        Returns up to `count` of them, none only if there are none.
        """
        ...

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps entries that were refused, with the reason, in a bounded stream of their own."""
        ...

    async def count(self) -> int:
        """Returns the number of entries in the stream."""
        ...


class RedisExperienceStream:
    """An ExperienceStream in Redis.

    Args:
        connection: The Redis.
        limit: Entries it keeps, approximately.
    """

    def __init__(self, connection: RedisConnection, *, limit: int = keys.EXPERIENCE_LIMIT) -> None:
        self._redis, self._call = connection.redis, connection.call
        self._set_aside, self._append = connection.set_aside, connection.append
        self._limit = limit

    async def append(self, payloads: Sequence[bytes]) -> None:
        """Appends entries in one round trip."""
        if not payloads:
            return

        def append() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for payload in payloads:
                pipeline.xadd(
                    keys.EXPERIENCE_STREAM, {_FIELD: payload},
                    maxlen=self._limit, approximate=True,
                )  # fmt: skip
            return cast("Awaitable[Any]", pipeline.execute())

        await self._append(keys.EXPERIENCE_STREAM, append)

    async def read(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns up to `count` new entries, waiting up to `block_s` seconds for the first."""
        block_ms = milliseconds(block_s) if block_s > 0 else None
        answer = await self._with_group(
            group,
            lambda: self._redis.xreadgroup(
                group, consumer, {keys.EXPERIENCE_STREAM: ">"}, count=count, block=block_ms
            ),
            extra_s=block_s,
        )
        return [entry for _stream, entries in _pairs(answer) for entry in _entries(entries)]

    async def behind(self, entry_id: str, count: int) -> list[StreamEntry]:
        """Returns up to `count` entries behind an id."""
        return _entries(
            await self._call(
                lambda: self._redis.xrange(keys.EXPERIENCE_STREAM, min=f"({entry_id}", count=count)
            )
        )

    async def newest_id(self) -> str:
        """Returns the id of the newest entry."""
        found = await self._call(lambda: self._redis.xrevrange(keys.EXPERIENCE_STREAM, count=1))
        return found[0][0].decode("ascii") if found else FIRST_ID

    async def ack(self, group: str, entry_ids: Sequence[str]) -> int:
        """Marks entries as safely taken in; returns how many were marked."""
        if not entry_ids:
            return 0
        return int(
            await self._call(lambda: self._redis.xack(keys.EXPERIENCE_STREAM, group, *entry_ids))
        )

    async def claim_stale(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over entries read at least `min_idle_s` ago and never acknowledged."""
        idle_ms = milliseconds(min_idle_s)
        start_id = FIRST_ID
        while True:
            claim = partial(
                self._redis.xautoclaim,
                keys.EXPERIENCE_STREAM, group, consumer, idle_ms, start_id=start_id, count=count,
            )  # fmt: skip
            answer = await self._with_group(group, claim)
            # Entries the stream has dropped in the meantime come back without fields.
            found = _entries(answer[1])
            start_id = answer[0].decode("ascii")
            # Redis looks at ten times as many as it is asked for: where none of them can be had,
            # it says where to look on, and only FIRST_ID means that there are no more.
            if found or start_id == FIRST_ID:
                return found

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps refused entries aside."""
        await self._set_aside(_KIND, letters)

    async def count(self) -> int:
        """Returns the number of entries in the stream."""
        return int(await self._call(lambda: self._redis.xlen(keys.EXPERIENCE_STREAM)))

    async def _with_group(
        self, group: str, command: Callable[[], Any], extra_s: float = 0.0
    ) -> Any:
        """Runs a group command; makes the group if there is none (first use, emptied Redis)."""
        for _attempt in range(2):
            try:
                return await self._call(command, extra_s=extra_s, known=("NOGROUP",))
            except ResponseError:
                await self._make_group(group)
        raise StateUnavailableError("Redis lost the consumer group twice in a row")

    async def _make_group(self, group: str) -> None:
        def create() -> Any:
            return self._redis.xgroup_create(keys.EXPERIENCE_STREAM, group, id="0", mkstream=True)

        try:
            await self._call(create, known=("BUSYGROUP",))
        except ResponseError:
            return  # another consumer was quicker


def _pairs(answer: Any) -> list[tuple[Any, Any]]:
    """Returns (stream, entries) pairs of both protocol versions' answers."""
    if not answer:
        return []
    if isinstance(answer, dict):
        # RESP3 nests the entries of a stream in one more list.
        return [(name, batches[0] if batches else []) for name, batches in answer.items()]
    return [(name, entries) for name, entries in answer]


def _entries(entries: Any) -> list[StreamEntry]:
    return [
        # What lacks the field is an entry too, and has to be acknowledged.
        StreamEntry(entry_id.decode("ascii"), fields.get(_FIELD, b""))
        for entry_id, fields in entries
        if fields
    ]


class MemoryExperienceStream:
    """An ExperienceStream of one process, gone with it.

    Args:
        clock: For blocking reads and idle times.
        limit: Entries it keeps.
    """

    def __init__(self, clock: Clock, *, limit: int = keys.EXPERIENCE_LIMIT) -> None:
        self._clock = clock
        self._limit = limit
        self._entries: deque[tuple[int, StreamEntry]] = deque(maxlen=limit)
        self._last_number = 0
        self._next: dict[str, int] = {}
        self.dead_letters: deque[DeadLetter] = deque(maxlen=keys.DEAD_LETTER_LIMIT)
        self._pending: dict[str, dict[str, tuple[StreamEntry, float]]] = {}

    async def append(self, payloads: Sequence[bytes]) -> None:
        """Appends entries."""
        now_ms = self._clock.wall_ns() // 1_000_000
        for payload in payloads:
            self._last_number = max(self._last_number + 1, now_ms)
            entry = StreamEntry(f"{self._last_number}-0", payload)
            self._entries.append((self._last_number, entry))

    async def read(
        self, group: str, consumer: str, count: int, block_s: float
    ) -> list[StreamEntry]:
        """Returns new entries; waits on the clock if there are none."""
        had = self._next.get(group, 0)
        if had >= self._last_number and block_s > 0:
            await self._clock.sleep(block_s)
        new = [(number, entry) for number, entry in self._entries if number > had][:count]
        found = [entry for _, entry in new]
        if new:
            self._next[group] = new[-1][0]
        now_s = self._clock.monotonic_s()
        pending = self._pending.setdefault(group, {})
        pending.update({e.entry_id: (e, now_s) for e in found})
        for entry_id in list(pending)[: max(len(pending) - self._limit, 0)]:
            del pending[entry_id]
        return found

    async def behind(self, entry_id: str, count: int) -> list[StreamEntry]:
        """Returns up to `count` entries behind an id."""
        last = int(entry_id.partition("-")[0])
        return [entry for number, entry in self._entries if number > last][:count]

    async def newest_id(self) -> str:
        """Returns the id of the newest entry."""
        return self._entries[-1][1].entry_id if self._entries else FIRST_ID

    async def ack(self, group: str, entry_ids: Sequence[str]) -> int:
        """Acknowledges entries."""
        pending = self._pending.setdefault(group, {})
        return sum(pending.pop(entry_id, None) is not None for entry_id in entry_ids)

    async def claim_stale(
        self, group: str, consumer: str, min_idle_s: float, count: int
    ) -> list[StreamEntry]:
        """Takes over old unacknowledged entries."""
        now_s = self._clock.monotonic_s()
        pending = self._pending.setdefault(group, {})
        stale = [e for e, read_s in pending.values() if now_s - read_s >= min_idle_s][:count]
        pending.update({e.entry_id: (e, now_s) for e in stale})
        return stale

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps refused entries."""
        self.dead_letters.extend(letters)

    async def count(self) -> int:
        """Returns the number of entries."""
        return len(self._entries)
