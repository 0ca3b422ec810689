"""Questions to children of a mesh."""

from __future__ import annotations

from services.local import probes


async def test_redis_and_http_probes_say_no_to_silence() -> None:
    """A port where nobody listens is not ready."""
    assert not await probes.redis_answers("127.0.0.1:1")
    assert not await probes.http_ok("127.0.0.1:1", "/")
