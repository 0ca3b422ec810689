"""What a decision costs: code that has just been loaded is no measure."""

from __future__ import annotations

import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from services.bench import decision
from services.bench.bench import SUITES, Bench
from services.bench.decision import Calls


async def test_the_first_decisions_of_a_world_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They meet cold caches, whatever the number of candidates."""

    async def world(*_: Any) -> Calls:
        return Calls(lambda _: None, itertools.count())

    def times_us(calls: Calls, count: int) -> list[float]:
        first = next(iter(itertools.islice(calls.arguments, count)))
        return [9.0 if first == 0 else 1.0] * count

    monkeypatch.setattr(decision, "_world", world)
    monkeypatch.setattr(decision, "_times_us", times_us)
    async with AsyncExitStack() as stack:
        bench = Bench(frozenset(), SUITES["smoke"], tmp_path, stack, lambda _, __: None)
        lines = await decision._growth(bench)
    assert lines == {"price": [(3, 1.0), (12, 1.0)], "dqn": [(3, 1.0), (12, 1.0)]}
