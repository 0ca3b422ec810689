"""One Redis, asked in bounded time; the stores of this package stand on it.

Every call ends in a result or in StateUnavailableError. A connection that broke is made anew by
the next call. Numbers in Lua are doubles: versions must stay below 2**53, as milliseconds since
1970 do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from services.common.state.errors import StateUnavailableError

_MS_PER_S = 1000.0


class RedisConnection:
    """A pool of connections to one Redis; nothing is sent before the first call.

    Args:
        url: `redis://host:port/db`.
        timeout_s: Longest time a call may take, connecting included, in seconds.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        self._timeout_s = timeout_s
        # One immediate retry: the first command after a restart of Redis meets a dead connection.
        # Time is bounded by `call`, because a socket timeout would cut blocking reads short.
        self.redis: Redis = Redis.from_url(
            url,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
            retry_on_error=[ConnectionError],
        )

    async def ping(self) -> None:
        """Returns if Redis answers."""
        await self.call(self.redis.ping)

    async def version(self) -> str:
        """Returns the server's version."""
        return str((await self.call(lambda: self.redis.info("server")))["redis_version"])

    async def close(self) -> None:
        """Closes the connections; never raises."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                await self.redis.aclose()

    async def call(
        self, command: Callable[[], Any], *, extra_s: float = 0.0, known: tuple[str, ...] = ()
    ) -> Any:
        """Runs a command and returns its answer.

        Args:
            command: Starts it.
            extra_s: Time it may take beyond the timeout, because it blocks on purpose, seconds.
            known: First words of refusals that the caller handles.

        Raises:
            StateUnavailableError: Redis is away, slow, or refused.
            ResponseError: Redis refused with one of the `known` words.
        """
        timeout_s = self._timeout_s + extra_s
        try:
            async with asyncio.timeout(timeout_s):
                return await command()
        except ResponseError as error:
            if known and str(error).startswith(known):
                raise
            raise StateUnavailableError(f"Redis refused: {error}") from error
        except TimeoutError:
            raise StateUnavailableError(f"Redis did not answer within {timeout_s:g} s") from None
        except (RedisError, OSError) as error:
            raise StateUnavailableError(f"Redis cannot be reached: {error}") from error


def milliseconds(duration_s: float) -> int:
    """Returns a time as Redis takes it, at least 1."""
    return max(1, round(duration_s * _MS_PER_S))
