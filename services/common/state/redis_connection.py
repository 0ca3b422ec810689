"""One Redis, asked in bounded time; the stores of this package stand on it.

Every call ends in a result or in StateUnavailableError. A connection that broke is made anew by
the next call. Numbers in Lua are doubles: versions must stay below 2**53, as milliseconds since
1970 do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from services.common.log import get_logger
from services.common.state import keys
from services.common.state.errors import StateUnavailableError

_MS_PER_S = 1000.0
_WRONG_TYPE = "WRONGTYPE"
_LAST_ID = "exhausted the last possible ID"
_NOT_OURS = "permissions"
_CLOSED = (RuntimeError,)
"""What uvloop raises for a write to a connection that a reset has closed."""


class DeadLetter(NamedTuple):
    """Something stored that was refused.

    Args:
        payload: What it was; a long one is cut when it is kept.
        reason: Why it was refused.
    """

    payload: bytes
    reason: str


class RedisConnection:
    """Connections to one Redis; nothing is sent before the first call.

    Args:
        url: `redis://host:port/db`.
        timeout_s: Longest time a call may take, connecting included, in seconds.

    Attributes:
        redis: Sends a command again, once, where its connection broke before the answer.
        once: Sends no command again: for those that would find the trace of their first time.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        self._timeout_s = timeout_s
        self._log = get_logger("services.common.state")
        # One immediate retry: the first command after a restart of Redis meets a dead connection.
        # Time is bounded by `call`, because a socket timeout would cut blocking reads short.
        self.redis: Redis = Redis.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[ConnectionError, *_CLOSED],
        )
        self.once: Redis = Redis.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )

    async def ping(self) -> None:
        """Returns if Redis answers."""
        await self.call(self.redis.ping)

    async def version(self) -> str:
        """Returns the server's version; empty if it is none of Redis' own, and tells none."""
        return str((await self.call(lambda: self.redis.info("server"))).get("redis_version", ""))

    async def clock_s(self) -> float:
        """Returns the server's time, seconds since 1970."""
        seconds, microseconds = await self.call(self.redis.time)
        return float(seconds) + float(microseconds) / 1e6

    async def close(self) -> None:
        """Closes the connections; never raises."""
        for each in (self.redis, self.once):
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout_s):
                    await each.aclose()

    async def call(
        self,
        command: Callable[[], Any],
        *,
        extra_s: float = 0.0,
        known: tuple[str, ...] = (),
        types: Mapping[str, str] | None = None,
    ) -> Any:
        """Runs a command and returns its answer; a key of a wrong type is set aside first.

        Args:
            command: Starts it.
            extra_s: Time it may take beyond the timeout, because it blocks on purpose, seconds.
            known: Words of refusals that the caller handles.
            types: Keys it uses beside those of `keys.TYPES`, with their types.

        Raises:
            StateUnavailableError: Redis is away, slow, or refused.
            ResponseError: Redis refused with one of the `known` words.
        """
        try:
            return await self._run(command, extra_s, (*known, _WRONG_TYPE))
        except ResponseError as error:
            if _WRONG_TYPE in known or _WRONG_TYPE not in str(error):
                raise
            await self._set_types_aside(keys.TYPES | dict(types or {}))
        return await self._run(command, extra_s, known)

    async def set_aside(self, kind: str, letters: Sequence[DeadLetter]) -> None:
        """Keeps what was found broken or was refused, in a bounded stream of its kind.

        Args:
            kind: What it is; few distinct values.
            letters: What was refused, and why.
        """

        def write() -> Any:
            pipeline = self.redis.pipeline(transaction=False)
            for letter in letters:
                fields: Any = {
                    b"reason": letter.reason, b"bytes": len(letter.payload),
                    b"payload": letter.payload[: keys.DEAD_LETTER_BYTES],
                }  # fmt: skip
                pipeline.xadd(
                    keys.dead_letter(kind), fields, maxlen=keys.DEAD_LETTER_LIMIT, approximate=False
                )
            return pipeline.execute()

        if letters:
            await self.append(keys.dead_letter(kind), write)

    async def append(self, stream: str, command: Callable[[], Any]) -> None:
        """Runs a command that appends to a stream; one at the last id there is gives way."""
        types = {stream: "stream"}
        try:
            await self.call(command, known=(_LAST_ID,), types=types)
        except ResponseError:
            await self.set_key_aside(stream)
            await self.call(command, types=types)

    async def _set_types_aside(self, types: Mapping[str, str]) -> None:
        for key, expected in types.items():
            try:
                answer = await self._run(partial(self.redis.type, key), known=(_NOT_OURS,))
            except ResponseError:
                continue  # Redis' users keep others' keys from us: it is none of these
            found = answer.decode()
            if found in (expected, "none"):
                continue
            await self.set_key_aside(key)

    async def set_key_aside(self, key: str) -> None:
        """Puts a whole key out of the way; it is kept for a while."""
        aside = keys.aside(key)
        with suppress(ResponseError):  # somebody else was quicker
            await self._run(partial(self.redis.rename, key, aside), known=("no such key",))
        await self._run(partial(self.redis.expire, aside, keys.SET_ASIDE_TTL_S))
        self._log.error("key_set_aside", key=key, kept_as=aside)

    async def _run(
        self, command: Callable[[], Any], extra_s: float = 0.0, known: tuple[str, ...] = ()
    ) -> Any:
        timeout_s = self._timeout_s + extra_s
        try:
            async with asyncio.timeout(timeout_s):
                return await command()
        except ResponseError as error:
            # Inside a script or a pipeline the word stands further behind.
            if any(word in str(error) for word in known):
                raise
            raise StateUnavailableError(f"Redis refused: {error}") from error
        except TimeoutError:
            raise StateUnavailableError(f"Redis did not answer within {timeout_s:g} s") from None
        except (RedisError, OSError, *_CLOSED) as error:
            raise StateUnavailableError(f"Redis cannot be reached: {error}") from error


def milliseconds(duration_s: float) -> int:
    """Returns a time as Redis takes it, at least 1."""
    return max(1, round(duration_s * _MS_PER_S))
