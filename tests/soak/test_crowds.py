"""The quick form of the crowds of connections on one router."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.crowds import QUICK, measure
from tests.soak.page import complaints


@pytest.mark.timeout(240)
async def test_no_crowd_of_connections_leaves_anything_behind(tmp_path: Path) -> None:
    """Readers that never read, idle and half-open connections, live streams; others go on."""
    rows = await measure(tmp_path, QUICK, print)
    assert [row.count for row in rows] == [10, 100, 8, 25]
    # How fast a normal client is answered on a busy machine is no matter of the suite.
    assert not [each for each in complaints(rows) if "left" in each]
    assert all(row.in_time > 0.0 for row in rows)
