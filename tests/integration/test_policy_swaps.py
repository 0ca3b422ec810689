"""The active policy is swapped under load: nothing is lost, and no decision mixes two versions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.bench.policy_swaps import Findings, measure, problems
from tests.conftest import RedisServer

pytestmark = pytest.mark.timeout(300)
GOOD = Findings(sent=3, answered=2, refused=1, counted=3, ended=3, explained=2)


async def test_swaps_under_load_lose_nothing_and_mix_nothing(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """Twenty of them; `python -m tests.bench.policy_swaps` makes a thousand."""
    found = await measure(tmp_path, redis_server.url, swaps=20, compiled=False)
    assert problems(found) == []
    assert found.swaps == 20
    assert len(found.by_version) == 3
    # It was under load, and the check of scores can tell one snapshot from the other.
    assert min(found.refused, found.spanning, found.told_apart) > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sent": 4}, "were lost"),
        ({"others": ["a: UNAVAILABLE"]}, "were lost"),
        ({"ended": 2}, "routers count 3 offered, 2 ended"),
        ({"mixed": ["a: decided by x"]}, "not of one version"),
        ({"explained": 1}, "1 decisions were not explained"),
        ({"missing": ["a"]}, "records"),
        ({"foreign": ["b"]}, "records"),
    ],
)
def test_what_did_not_hold_is_said(change: dict[str, Any], says: str) -> None:
    """Each of the things that must hold is looked at."""
    assert problems(GOOD) == []
    assert any(says in each for each in problems(replace(GOOD, **change)))
