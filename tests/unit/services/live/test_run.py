"""A run on a live mesh: what is read from routers meanwhile."""

from __future__ import annotations

from services.live.run import loop_lag_s


def test_the_loops_lag_is_read_from_the_metrics_page() -> None:
    """A page without it tells none."""
    page = "# TYPE tiercel_loop_lag_seconds gauge\ntiercel_loop_lag_seconds 0.0125\nother 3\n"
    assert loop_lag_s(page) == 0.0125
    assert loop_lag_s("other 3\n") == 0.0
