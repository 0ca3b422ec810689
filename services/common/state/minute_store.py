"""Minutes of the mesh's books: monitors write what was, trainers what might have been."""

from __future__ import annotations

from bisect import insort
from collections.abc import Awaitable
from typing import Any, Protocol, cast

from services.common.state import keys
from services.common.state.redis_connection import RedisConnection

MINUTE_S = 60


class MinuteStore(Protocol):
    """Minutes by kind, one of `keys.MINUTE_BOOKS` and `keys.MINUTE_HINDSIGHT`.

    A method that cannot answer raises StateUnavailableError within its timeout.
    """

    async def put(self, kind: str, minute_s: int, payload: bytes) -> None:
        """Keeps a minute that began at `minute_s`, seconds since 1970; old ones give way."""
        ...

    async def read(
        self, kind: str, start_s: float, end_s: float, limit: int
    ) -> list[tuple[int, bytes]]:
        """Returns minutes that began in [start_s, end_s), at most `limit`, the oldest first.

        Of one minute there may be several, written by processes that did not see each other.
        """
        ...


class RedisMinuteStore:
    """A MinuteStore in Redis.

    In a sorted set: what a wrong clock has written stands in nobody's way, as it would in a stream,
    whose ids only grow.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._redis, self._call = connection.redis, connection.call

    async def put(self, kind: str, minute_s: int, payload: bytes) -> None:
        """Keeps a minute, in one round trip."""

        def put() -> Awaitable[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            # The number makes the member unlike that of a minute with the same numbers in it.
            pipeline.zadd(kind, {f"{minute_s}:".encode() + payload: minute_s})
            pipeline.zremrangebyrank(kind, 0, -keys.MINUTES_LIMIT - 1)
            pipeline.expire(kind, keys.MINUTES_TTL_S)
            return cast("Awaitable[Any]", pipeline.execute())

        await self._call(put)

    async def read(
        self, kind: str, start_s: float, end_s: float, limit: int
    ) -> list[tuple[int, bytes]]:
        """Returns minutes."""
        found = await self._call(
            lambda: self._redis.zrangebyscore(
                kind, start_s, f"({end_s}", start=0, num=limit, withscores=True
            )
        )
        return [(int(score), member.partition(b":")[2]) for member, score in found]


class MemoryMinuteStore:
    """A MinuteStore of one process, gone with it."""

    def __init__(self) -> None:
        self._kept: dict[str, list[tuple[int, bytes]]] = {}

    async def put(self, kind: str, minute_s: int, payload: bytes) -> None:
        """Keeps a minute."""
        kept = self._kept.setdefault(kind, [])
        insort(kept, (minute_s, payload))
        del kept[: -keys.MINUTES_LIMIT]

    async def read(
        self, kind: str, start_s: float, end_s: float, limit: int
    ) -> list[tuple[int, bytes]]:
        """Returns minutes."""
        found = [each for each in self._kept.get(kind, ()) if start_s <= each[0] < end_s]
        return found[:limit]
