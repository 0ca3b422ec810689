"""Chooses where the state of a process lives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from services.common.addresses import TLS_FILES
from services.common.clock import Clock
from services.common.settings import SettingsError
from services.common.state.experience_stream import (
    ExperienceStream,
    MemoryExperienceStream,
    RedisExperienceStream,
)
from services.common.state.minute_store import MemoryMinuteStore, MinuteStore, RedisMinuteStore
from services.common.state.policy_store import MemoryPolicyStore, PolicyStore, RedisPolicyStore
from services.common.state.redis_connection import RedisConnection
from services.common.state.shared_state import MemorySharedState, RedisSharedState, SharedState


def _check_files(url: str) -> None:
    """Raises SettingsError for a file that cannot be read: Redis' library says so at every call."""
    problems = []
    for name, value in parse_qsl(urlsplit(url).query):
        if name in TLS_FILES:
            try:
                Path(value).open("rb").close()
            except OSError as error:
                reason = error.strerror or error
                problems.append(f"mesh.redis_url: {name}: {value}: cannot be read: {reason}")
    if problems:
        raise SettingsError(problems)


async def _nothing() -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """The stores; each service hands its parts the ones they need.

    Args:
        shared: What the monitors share.
        policies: The policy registry.
        experience: The experience stream.
        minutes: The mesh's books.
        close: Closes their connections; never raises.
    """

    shared: SharedState
    policies: PolicyStore
    experience: ExperienceStream
    minutes: MinuteStore
    close: Callable[[], Awaitable[None]] = _nothing


def connect_stores(redis_url: str, *, clock: Clock, timeout_s: float = 0.5) -> Stores:
    """Returns the stores at `redis_url`, or some in memory if the URL is empty.

    Connecting is left to the first call, so that a Redis that is away does not stop the start.

    Args:
        redis_url: `redis://host:port/db`; empty means none.
        clock: For the stores in memory.
        timeout_s: Longest time a call to Redis may take, seconds.

    Raises:
        SettingsError: A certificate that the URL names cannot be read.
    """
    _check_files(redis_url)
    if not redis_url:
        return Stores(
            shared=MemorySharedState(clock),
            policies=MemoryPolicyStore(),
            experience=MemoryExperienceStream(clock),
            minutes=MemoryMinuteStore(),
        )
    connection = RedisConnection(redis_url, timeout_s=timeout_s)
    return Stores(
        shared=RedisSharedState(connection),
        policies=RedisPolicyStore(connection),
        experience=RedisExperienceStream(connection),
        minutes=RedisMinuteStore(connection),
        close=connection.close,
    )
