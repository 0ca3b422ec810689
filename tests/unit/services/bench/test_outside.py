"""Others at the same place."""

from __future__ import annotations

import contextlib
import pathlib
import shutil

from services.bench import outside
from services.bench.bench import SUITES, Bench


async def test_what_is_there_is_measured_and_what_is_not_is_named(tmp_path: pathlib.Path) -> None:
    """Ours and the bare servers have rows in the table, a program that is missing its reason."""
    async with contextlib.AsyncExitStack() as stack:
        bench = Bench(frozenset(), SUITES["smoke"], tmp_path, stack, lambda share, text: None)
        report = await outside.measure(bench, None)
    assert set(outside.OURS[1:]) <= report["rows"].keys()
    assert ("nginx" in report["rows"]) is (shutil.which("nginx") is not None)
    assert all(row["cpu_us"] > 0.0 for row in report["rows"].values())
    assert "| LiteLLM: not asked for |" in outside.show(report)
