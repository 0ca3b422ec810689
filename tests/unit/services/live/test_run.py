"""A run on a live mesh: what is read from routers meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from services.live.run import Look, Sending, loop_lag_s, run_policy
from services.local.errors import CommandError


def test_the_loops_lag_is_read_from_the_metrics_page() -> None:
    """A page without it tells none."""
    page = "# TYPE tiercel_loop_lag_seconds gauge\ntiercel_loop_lag_seconds 0.0125\nother 3\n"
    assert loop_lag_s(page) == 0.0125
    assert loop_lag_s("other 3\n") == 0.0


def test_what_counts_is_used_while_requests_are_sent() -> None:
    """Neither before the first one, nor while the last answers are waited for."""
    looks = iter([Look(3.0, {"router": 1.0}, None), Look(13.0, {"router": 9.0}, None)])
    sending = Sending(lambda: next(looks))
    for offered in (1, 40, 99, 100, 100):
        assert sending.ends is None or offered == 100
        sending.note({"offered": offered, "planned": 100})
    assert sending.ends is not None
    first, last = sending.ends
    assert last.cores(first) == {"router": 0.8}


def test_a_run_too_short_for_two_looks_has_none() -> None:
    """What was used is then told of all of it."""
    sending = Sending(lambda: Look(0.0, {}, None))
    sending.note({"offered": 5, "planned": 5})
    assert sending.ends is None


async def test_a_router_that_does_not_answer_is_one_line() -> None:
    """It is no bug of the command."""
    restart: Any = AsyncMock()
    mesh: Any = SimpleNamespace(router_addresses=["127.0.0.1:1"], restart_routers=restart)
    spec: Any = None  # nothing is sent
    with pytest.raises(CommandError, match=r"no router answers at 127\.0\.0\.1:1"):
        await run_policy(mesh, "price", spec)
