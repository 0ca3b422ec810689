"""The connections to one server: kept while they are needed, one request on each at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from services.common.access.tls import Tls
from services.common.addresses import parse_address
from services.common.openai.connection import Carrier, Connection, Exchange
from services.common.tiers.errors import TierUnavailableError

_CONNECT_S = 2.0
_MOST_IDLE_S = 2.0
"""Servers close connections that nobody uses, after five seconds or more."""
_MOST_REQUESTS = 1_000


class ConnectionPool:
    """Sends requests on connections to one address; straight there, by no proxy."""

    def __init__(self, address: str, most_idle: int, tls: Tls | None) -> None:
        """Connects with the first request.

        Args:
            address: `host:port`.
            most_idle: How many connections wait for a next request at most; 0 keeps none.
            tls: Certificates; None means plain text.
        """
        self._place = parse_address(address)
        self._most_idle = most_idle
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._opening: set[_Opening] = set()
        self._sweep: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Returns how many connections there are, idle ones included."""
        return len(self._open) + len(self._opening)

    @property
    def busy_count(self) -> int:
        """How many connections carry a request now."""
        return len(self) - len(self._idle)

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request."""
        if self._idle:
            # The last one used comes first, so that those too many grow old.
            self._idle.pop().carry(exchange, request)
        else:
            self.send_anew(exchange, request)

    def send_anew(self, exchange: Exchange, request: bytes) -> None:
        """Sends a request on a new connection."""
        opening = _Opening(self._opening)
        exchange.carrier = opening
        self._opening.add(opening)
        opening.task = self._loop.create_task(self._connect(opening, exchange, request))

    async def _connect(self, opening: _Opening, exchange: Exchange, request: bytes) -> None:
        host, port = self._place
        connection = Connection(self)
        try:
            # Files of certificates may be gone, or be changed at this moment.
            context = self._tls.client_context() if self._tls is not None else None
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(lambda: connection, host, port, ssl=context)
        except (OSError, TimeoutError, RuntimeError, UnicodeError) as error:
            # The last two are uvloop's for a reset, and that of a name that can be none.
            exchange.carrier = None
            exchange.fail(TierUnavailableError("UNAVAILABLE", f"cannot connect: {_said(error)}"))
        else:
            self._open.add(connection)
            connection.carry(exchange, request)
        finally:
            self._opening.discard(opening)
            if not connection.count:  # given up, perhaps in the moment in which it was made
                connection.abort()

    def give_back(self, connection: Connection) -> None:
        """Keeps a connection for the next request, or closes it."""
        if len(self._idle) >= self._most_idle or connection.count >= _MOST_REQUESTS:
            connection.abort()
            return
        connection.idle_s = self._loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_MOST_IDLE_S, self._end_old)

    def forget(self, connection: Connection) -> None:
        """Lets go of a connection that is closed."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _end_old(self) -> None:
        """Closes the connections that nobody has needed for long; comes back while others wait."""
        idle, now_s = self._idle, self._loop.time()
        while idle and idle[0].idle_s <= now_s - _MOST_IDLE_S:
            idle.popleft().abort()
        left_s = idle[0].idle_s + _MOST_IDLE_S - now_s if idle else 0.0
        self._sweep = self._loop.call_later(left_s, self._end_old) if idle else None

    async def close(self) -> None:
        """Closes every connection at once."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._most_idle = 0
        tasks = [opening.task for opening in self._opening if opening.task is not None]
        carriers: list[Carrier] = [*self._opening, *self._open]
        for carrier in carriers:
            carrier.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        await asyncio.sleep(0)  # transports close with the loop's next turn


class _Opening:
    """A request whose connection is being opened."""

    __slots__ = ("_all", "task")

    def __init__(self, all_of_them: set[_Opening]) -> None:
        """Takes the set that it is in until it ends."""
        self._all = all_of_them
        self.task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        """Opens no connection."""
        # Not left to the task: one that is cancelled before its first step never runs.
        self._all.discard(self)
        if self.task is not None:
            self.task.cancel()


def _said(error: Exception) -> str:
    """Returns what is wrong in a few words, without addresses that the resolver chose."""
    if isinstance(error, TimeoutError):
        return f"no answer within {_CONNECT_S:g} s"
    number = error.errno if isinstance(error, OSError) else None
    text = getattr(error, "strerror", None) or type(error).__name__
    return os.strerror(number) if number is not None and number > 0 else str(text)
