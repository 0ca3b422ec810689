"""Health of a server's services (`grpc.health.v1`), for whoever asks: also strangers.

The library's own servicer holds a lock while it sends. There one watcher that reads nothing keeps
every other from being told, and the service from changing its health at all; and one that leaves
takes the others' wake-up with it. Here no watcher waits for another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.checks import Checks
from services.common.errors import NotFoundError

SERVICE_NAME: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
MAX_NAME_CHARACTERS = 256
_Response: Any = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers Check and Watch; starts with the server as a whole SERVING."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {"": _Response.SERVING}
        self._watchers: set[asyncio.Event] = set()
        self._is_final = False

    async def Check(self, request: Any, context: Any) -> Any:
        """Returns a service's health; NOT_FOUND for a name that has none."""
        name = _name_of(request)
        status = self._statuses.get(name)
        if status is None:
            raise NotFoundError("service", name)
        return _Response(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Sends a service's health and every change; SERVICE_UNKNOWN until there is such a one.

        What changes while a message is sent is told by the next one: the newest state counts.
        """
        name, last = _name_of(request), None
        has_news = asyncio.Event()
        self._watchers.add(has_news)
        try:
            while True:
                has_news.clear()
                status = self._statuses.get(name, _Response.SERVICE_UNKNOWN)
                if status != last:
                    last = status
                    yield _Response(status=status)
                else:
                    await has_news.wait()
        finally:
            self._watchers.discard(has_news)

    def set(self, name: str, status: int) -> None:
        """Sets a service's health."""
        if not self._is_final:
            self._statuses[name] = status
            self._tell()

    def drain(self) -> None:
        """Sets the health of all of them to NOT_SERVING for good."""
        self._is_final = True
        self._statuses = dict.fromkeys(self._statuses, _Response.NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        for has_news in self._watchers:
            has_news.set()


def _name_of(request: Any) -> str:
    checks = Checks()
    checks.text("service", request.service, MAX_NAME_CHARACTERS)
    checks.raise_if_any()
    return str(request.service)
