"""A run on a live mesh: what is read from routers meanwhile."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import pytest

from services.live.run import loop_lag_s, run_policy
from services.local.errors import CommandError


def test_the_loops_lag_is_read_from_the_metrics_page() -> None:
    """A page without it tells none."""
    page = "# TYPE tiercel_loop_lag_seconds gauge\ntiercel_loop_lag_seconds 0.0125\nother 3\n"
    assert loop_lag_s(page) == 0.0125
    assert loop_lag_s("other 3\n") == 0.0


async def test_a_router_that_does_not_answer_is_one_line() -> None:
    """It is no bug of the command."""
    restart: Any = AsyncMock()
    mesh: Any = SimpleNamespace(router_addresses=["127.0.0.1:1"], restart_routers=restart)
    spec: Any = None  # nothing is sent
    with pytest.raises(CommandError, match=r"no router answers at 127\.0\.0\.1:1"):
        await run_policy(mesh, "price", spec)
