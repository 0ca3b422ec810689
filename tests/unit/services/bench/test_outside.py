"""Others at the same place."""

from __future__ import annotations

import contextlib
import pathlib
import shutil
from collections.abc import Mapping

import pytest

from services.bench import outside
from services.bench.added import Way
from services.bench.bench import SUITES, Bench, Server


async def test_what_is_there_is_measured_and_what_is_not_is_named(tmp_path: pathlib.Path) -> None:
    """Ours and the bare servers have rows in the table, a program that is missing its reason."""
    async with contextlib.AsyncExitStack() as stack:
        bench = Bench(frozenset(), SUITES["smoke"], tmp_path, stack, lambda share, text: None)
        report = await outside.measure(bench, None)
    assert {*outside.OURS, "upstream", "door"} <= report["rows"].keys()
    assert report["rows"]["door"]["cpu_us_by"].keys() == {"door", "router"}
    assert ("nginx" in report["rows"]) is (shutil.which("nginx") is not None)
    assert all(row["cpu_us"] > 0.0 for row in report["rows"].values())
    assert "| LiteLLM: not asked for |" in outside.show(report)
    assert report["metrics"] == {}


def test_door_and_router_are_held_against_litellm_round_by_round() -> None:
    """Rates by what both processes cost together, medians less those of the server itself."""
    ways = {
        "upstream": way([{"upstream": 0.001}] * 2, [[0.001] * 3, [0.002] * 3]),
        "door": way([{"door": 0.001, "router": 0.001}] * 2, [[0.003] * 3, [0.004] * 3]),
        "LiteLLM": way([{"LiteLLM": 0.010}, {"LiteLLM": 0.020}], [[0.021] * 3, [0.012] * 3]),
    }
    rate, added = outside.beside_litellm(ways)
    assert rate.ratio_R == pytest.approx([5.0, 10.0])
    assert rate.parts["CPU us of router"] == pytest.approx(1_000.0)
    assert added.value_R == pytest.approx([2_000.0, 2_000.0])
    assert added.ratio_R == pytest.approx([0.1, 0.2])
    report = {
        "rows": {},
        "missing": {},
        "metrics": {each.name: each.judged() for each in (rate, added)},
    }
    *_, first, second = outside.show(report).splitlines()
    assert first.endswith("| ≥ 5x | yes |")
    assert second.endswith("| ≤ 0.2x | yes |")


def way(cpu_R: list[Mapping[str, float]], took_R: list[list[float]]) -> Way:
    """A way that was measured."""
    server = Server("", "", 1)
    return Way(never, dict.fromkeys(cpu_R[0], server), cpu_R, [], {outside.SINGLE: took_R})


async def never() -> float:
    """Is not asked."""
    raise AssertionError
