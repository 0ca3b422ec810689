"""Which router a call goes to."""

from __future__ import annotations

from tiercel.channels import RouterPool


async def test_an_avoided_router_comes_last_for_a_while() -> None:
    """The order of attempts follows the clock."""
    now = [0.0]
    pool = RouterPool(["a:1", "b:1"], clock=lambda: now[0])
    pool.avoid(pool.routers[0])
    assert [r.address for r in pool.attempts()] == ["b:1", "a:1"]
    now[0] = 2.0
    pool._next = 0
    assert [r.address for r in pool.attempts()] == ["a:1", "b:1"]
    await pool.close()
