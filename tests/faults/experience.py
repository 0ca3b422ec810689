"""Whether all experience that the trainer has acknowledged is in what it has saved."""

from __future__ import annotations

import asyncio
from typing import Any

from services.common.state import keys
from tests.faults.mesh import GROUP, FaultMesh
from tiercel.common.v1 import experience_pb2
from trainer.learning.checkpoint import load_checkpoint
from trainer.learning.online.settled import SettledKeys

MOST_ENTRIES = 100_000


async def last_id(mesh: FaultMesh) -> str:
    """Returns the id of the stream's newest entry."""
    newest = await newest_id(mesh)
    return str(newest, "ascii") if newest else "-"


async def newest_id(mesh: FaultMesh) -> bytes:
    """Returns the id of the stream's newest entry; empty if it has none."""
    redis: Any = mesh.redis_client
    newest = await redis.xrevrange(keys.EXPERIENCE_STREAM, count=1)
    return bytes(newest[0][0]) if newest else b""


async def not_learned(mesh: FaultMesh, since_id: str) -> int:
    """Counts decisions since an entry that are acknowledged and in no saved replay."""
    redis: Any = mesh.redis_client
    stream = keys.EXPERIENCE_STREAM
    # In this order: what is acknowledged and saved meanwhile counts as neither.
    group = await mesh.consumer_group()
    if group is None:
        return 0
    until_id = group["last-delivered-id"]
    pending = await redis.xpending_range(stream, GROUP, "-", "+", MOST_ENTRIES)
    waiting = {each["message_id"] for each in pending}
    start = since_id if since_id == "-" else f"({since_id}"
    entries = await redis.xrange(stream, start, until_id, count=MOST_ENTRIES)
    settled = await asyncio.to_thread(_settled, mesh)
    missing = 0
    for entry_id, fields in entries:
        record = experience_pb2.ExperienceEntry.FromString(fields[b"e"])
        if entry_id not in waiting and record.HasField("decision"):
            each = record.decision
            missing += (each.router_id, each.epoch, each.sequence) not in settled
    return missing


def _settled(mesh: FaultMesh) -> SettledKeys:
    settled = SettledKeys()
    found = load_checkpoint(mesh.folder / "trainer" / "online.state")
    if found is not None:
        settled.set_state(found[0]["settled"])
    return settled
