"""What can become of the mesh's Redis, done to a real one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.local.backends import redis_command
from services.local.launch import tied_command
from tests.faults.relay import Relay
from tests.waiting import until

_SYNC_LIMIT_S = 20.0


@contextlib.asynccontextmanager
async def _asked(address: str) -> Any:
    redis: Redis = Redis.from_url(f"redis://{address}/0", socket_timeout=10.0)
    try:
        yield redis
    finally:
        await redis.aclose()


async def empty(address: str) -> None:
    """Takes everything away."""
    async with _asked(address) as redis:
        await redis.flushall()


async def set_read_only(address: str, is_read_only: bool) -> None:
    """Makes it the replica of a server that is not there: it answers, and refuses to write."""
    async with _asked(address) as redis:
        await redis.execute_command(
            "REPLICAOF", *(("127.0.0.1", 1) if is_read_only else ("NO", "ONE"))
        )


async def set_memory(address: str, limit: str) -> None:
    """Sets the most memory it may use; beyond it, it refuses to write."""
    async with _asked(address) as redis:
        await redis.config_set("maxmemory", limit)


async def sleep(address: str, duration_s: float) -> None:
    """Lets it do nothing for a while; it answers afterwards."""
    async with _asked(address) as redis:
        await redis.execute_command("DEBUG", "SLEEP", duration_s)


class Successor:
    """A second Redis that follows the first one, and takes over at the same address."""

    def __init__(self, first: str, wires: list[Relay], folder: Path) -> None:
        """Starts nothing yet; `wires` are the ways by which the mesh reaches Redis."""
        self._first, self._wires, self._folder = first, wires, folder
        self._process: asyncio.subprocess.Process | None = None
        self._address = ""

    async def start(self, port: int) -> None:
        """Starts it and waits until it holds what the first one holds."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._address = f"127.0.0.1:{port}"
        self._process = await asyncio.create_subprocess_exec(
            *tied_command(redis_command(port, self._folder)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        await _follow(self._address, self._first)

    async def take_over(self) -> None:
        """Becomes the one that is written to; whoever was connected to the first is cut off."""
        await self._hand_over(self._first, self._address)

    async def give_back(self) -> None:
        """Lets the first one catch up and take over again, and ends."""
        await _follow(self._first, self._address)
        await self._hand_over(self._address, self._first)
        await self.close()

    async def close(self) -> None:
        """Ends the process."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _hand_over(self, leader: str, heir: str) -> None:
        """Moves the address as a managed Redis does: in step first, so that nothing is lost."""
        for wire in self._wires:
            wire.there.flows.clear()
        await until(lambda: _is_in_step(heir, leader), "Redis is in step", _SYNC_LIMIT_S)
        async with _asked(heir) as redis:
            await redis.execute_command("REPLICAOF", "NO", "ONE")
        for wire in self._wires:
            wire.target = heir
            wire.reset()
            wire.there.flows.set()


async def _follow(address: str, leader: str) -> None:
    """Makes one Redis the replica of another, and waits until it is."""
    host, _, port = leader.rpartition(":")

    async def is_up() -> bool:
        with contextlib.suppress(RedisError, OSError):
            async with _asked(address) as redis:
                await redis.ping()
                return True
        return False

    await until(is_up, "Redis starts", _SYNC_LIMIT_S)
    async with _asked(leader) as first:
        await first.config_set("repl-diskless-sync-delay", 0)
    async with _asked(address) as redis:
        await redis.execute_command("REPLICAOF", host, port)
    await until(lambda: _is_in_step(address, leader), "Redis follows", _SYNC_LIMIT_S)


async def _is_in_step(address: str, leader: str) -> bool:
    """Says whether a replica holds what its leader held when it was asked."""
    try:
        async with _asked(address) as redis, _asked(leader) as first:
            its, mine = await first.info("replication"), await redis.info("replication")
    except (RedisError, OSError):
        return False
    behind = its["master_repl_offset"] - mine.get("slave_repl_offset", -1)
    return bool(mine.get("master_link_status") == "up" and behind <= 0)
