"""``tiercel trace``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.app import run
from tests.unit.services.cli.said import complaint

TRACE = "a" * 32


def span(name: str, span_id: str, parent: str, start_ms: float, end_ms: float) -> dict[str, Any]:
    """A span as a router writes it."""
    return {
        "trace_id": TRACE, "span_id": span_id, "parent_span_id": parent, "name": name,
        "service": "router", "start_ns": int(start_ms * 1e6), "end_ns": int(end_ms * 1e6),
        "error": None, "attributes": {"tiercel.tier": "large", "tiercel.scores": [1.0]},
        "events": [],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A request of 90 ms whose parent, a client's span, is not there."""
    spans = [
        span("tiercel.dispatch", "3", "1", 1005.0, 1090.0),
        span("tiercel.request", "1", "client", 1000.0, 1090.0),
        span("tiercel.decision", "2", "1", 1001.0, 1002.5),
    ]
    (tmp_path / "router-1.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in spans))
    return tmp_path


def test_a_trace_is_a_tree_in_order_of_time(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With offsets and lengths; long lists are left to --json."""
    assert run(["trace", TRACE, "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert TRACE in out
    names = ["tiercel.request", "├── tiercel.decision", "└── tiercel.dispatch"]
    places = [out.index(name) for name in names]
    assert places == sorted(places)
    assert "+1.0 ms  1.5 ms" in out
    assert "tier=large" in out
    assert "scores" not in out
    assert run(["trace", TRACE, "--folder", str(folder), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3


def test_a_trace_that_is_not_there_says_where_it_was_looked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And why it may be missing."""
    assert run(["trace", "b" * 32, "--folder", str(folder)]) == 1
    assert f"in {folder}; not sampled" in complaint(capsys)
    assert run(["trace", TRACE, "--folder", str(folder / "none")]) == 1
    assert f"no folder {folder / 'none'}" in complaint(capsys)
    assert run(["trace", "b" * 32, "--config", "nosuch.toml"]) == 2
    assert "nosuch.toml" in complaint(capsys)
