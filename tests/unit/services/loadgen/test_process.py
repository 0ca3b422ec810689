"""The load generator as a process of its own: what is told of one that fails."""

from __future__ import annotations

import os
import pathlib
import sys
from typing import Any

import pytest

from services.loadgen.process import LoadProcessError, run_load
from tests.unit.services.loadgen.specs import spec_of

FAILS = """
import json, sys
print("a library's warning", file=sys.stderr, flush=True)
print(json.dumps({"event": "progress"}), flush=True)
open(sys.argv[1]).read()
print("error: no router answers", file=sys.stderr)
sys.exit(1)
"""


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
