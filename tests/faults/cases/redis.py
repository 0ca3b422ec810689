"""What can become of Redis; no request ever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from services.local.ports import PortClaims
from tests.faults import redis_faults
from tests.faults.case import Case, Expect
from tests.faults.mesh import FaultMesh
from tests.faults.redis_faults import Successor
from tests.faults.surroundings import AROUND, REDIS, START

FAULT_S = 1.0
_UNHARMED = Expect(on_time_share=0.99)


def _while(
    begin: Callable[[str], Awaitable[None]], end: Callable[[str], Awaitable[None]]
) -> Callable[[FaultMesh], Awaitable[None]]:
    async def fault(mesh: FaultMesh) -> None:
        address = mesh.addresses["redis"]
        await begin(address)
        try:
            await asyncio.sleep(FAULT_S)
        finally:
            await end(address)

    return fault


async def _empty(mesh: FaultMesh) -> None:
    await redis_faults.empty(mesh.addresses["redis"])


async def _slow(_: FaultMesh) -> None:
    for wire in AROUND.to(REDIS):
        wire.back.delay_s = 0.3
    try:
        await asyncio.sleep(FAULT_S)
    finally:
        AROUND.mend()


async def _asleep(mesh: FaultMesh) -> None:
    await redis_faults.sleep(mesh.addresses["redis"], FAULT_S)


async def _fail_over(mesh: FaultMesh) -> None:
    claims = PortClaims()
    folder = Path(mesh.folder.parent) / "redis-2"
    successor = Successor(mesh.addresses["redis"], AROUND.to(REDIS), folder)
    try:
        await successor.start(claims.any_free())
        await successor.take_over()
        await asyncio.sleep(FAULT_S)
        await successor.give_back()
    finally:
        await successor.close()
        claims.release()


CASES = [
    Case(
        name="redis-emptied",
        done="Redis emptied (FLUSHALL)",
        ends="at once",
        fault=_empty,
        expect=Expect(on_time_share=0.99, may_lose=frozenset({"experience"})),
        start=START,
    ),
    Case(
        name="redis-read-only",
        done="Redis refuses to write: replica of a server that is gone",
        ends=f"after {FAULT_S:g} s",
        fault=_while(
            lambda address: redis_faults.set_read_only(address, True),
            lambda address: redis_faults.set_read_only(address, False),
        ),
        expect=_UNHARMED,
        start=START,
    ),
    Case(
        name="redis-memory",
        done="Redis out of memory (maxmemory, noeviction)",
        ends=f"room after {FAULT_S:g} s",
        fault=_while(
            lambda address: redis_faults.set_memory(address, "100kb"),
            lambda address: redis_faults.set_memory(address, "256mb"),
        ),
        expect=_UNHARMED,
        start=START,
    ),
    Case(
        name="redis-slow",
        done="every answer of Redis takes 0.3 s more",
        ends=f"after {FAULT_S:g} s",
        fault=_slow,
        expect=_UNHARMED,
        start=START,
    ),
    Case(
        name="redis-asleep",
        done="Redis does nothing (DEBUG SLEEP)",
        ends=f"after {FAULT_S:g} s",
        fault=_asleep,
        expect=_UNHARMED,
        start=START,
    ),
    Case(
        name="redis-failover",
        done="a second Redis takes over at the same address; connections are reset",
        ends=f"after {FAULT_S:g} s the first one takes over again",
        fault=_fail_over,
        expect=_UNHARMED,
        start=START,
    ),
]
