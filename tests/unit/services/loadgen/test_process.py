"""The load generator as a process of its own: what is told of one that fails."""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
from typing import Any

import pytest

from services.loadgen.process import LoadProcessError, run_load
from services.loadgen.records import RunRecords
from tests.fakes.router import FakeRouter, serve
from tests.unit.services.loadgen.specs import spec_of

FAILS = """
import json, sys
print("a library's warning", file=sys.stderr, flush=True)
print(json.dumps({"event": "progress"}), flush=True)
open(sys.argv[1]).read()
print("error: no router answers", file=sys.stderr)
sys.exit(1)
"""


async def test_runs_that_write_to_one_file_do_not_mix(tmp_path: pathlib.Path) -> None:
    """As two of `tiercel load` do that are started together: each sends and tells its own."""
    out = tmp_path / "load" / "last.npz"
    server, address = await serve(FakeRouter())
    try:
        specs = [spec_of(address, seed=seed, nice=0) for seed in (1, 2)]
        found = await asyncio.gather(*(run_load(spec, out) for spec in specs))
    finally:
        await server.stop(0)
    planned = [len(spec.arrivals().arrival_s) for spec in specs]
    assert planned[0] != planned[1]
    assert [records.meta["planned"] for records in found] == planned
    assert RunRecords.load(out).meta["planned"] in planned
    # What a run needed for itself is gone.
    assert sorted(path.name for path in out.parent.iterdir()) == ["last.npz", "last.spec.json"]


async def test_the_last_thing_it_said_is_told(monkeypatch: Any, tmp_path: pathlib.Path) -> None:
    """However many pieces its standard error comes in."""
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    command = [sys.executable, "-c", FAILS, str(go_on)]
    monkeypatch.setattr("services.loadgen.process.tied_command", lambda *_, **__: command)

    def on_progress(_: dict[str, Any]) -> None:
        go_on.write_text("its first line is read by now", encoding="utf-8")

    with pytest.raises(LoadProcessError, match=r"^no router answers$"):
        await run_load(spec_of("127.0.0.1:1"), tmp_path / "run.npz", on_progress=on_progress)
