"""Spans in files: what is written, what is found again, and what it may take."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from services.common import span_file
from services.common.log import get_logger
from services.common.span_file import FileSpanExporter, read_spans
from services.common.telemetry import SpanEvent, Telemetry
from services.common.telemetry_setup import setup_telemetry


def telemetry_to(folder: Path) -> Telemetry:
    """Telemetry that goes to a folder and nowhere else."""
    log, rng = get_logger("test"), random.Random(1)
    return setup_telemetry("router", environ={}, rng=rng, log=log, folder=str(folder))


def test_a_trace_is_found_by_its_id_and_by_the_id_of_a_request_in_it(tmp_path: Path) -> None:
    """Whole, with parents, times, attributes and events; other traces stay out."""
    telemetry = telemetry_to(tmp_path / "traces")
    for request_id in ("r1", "r2"):
        request = telemetry.begin(None)
        child = telemetry.child(request)
        attributes = {"tiercel.request_id": request_id, "tiercel.scores": [1.0, 2.0]}
        event = SpanEvent("first", 1_500)
        telemetry.emit(
            request, "tiercel.request", start_ns=1_000, end_ns=3_000, attributes=attributes,
            events=(event,), error="LATE" if request_id == "r2" else None,
        )  # fmt: skip
        telemetry.emit(child, "tiercel.dispatch", start_ns=1_200, end_ns=2_900)
    telemetry.close()
    spans = read_spans(tmp_path / "traces", "r2")
    assert [span["name"] for span in spans] == ["tiercel.request", "tiercel.dispatch"]
    first, second = spans
    assert (first["parent_span_id"], second["parent_span_id"]) == ("", first["span_id"])
    assert (first["service"], first["error"], second["error"]) == ("router", "LATE", None)
    assert (first["start_ns"], first["end_ns"]) == (1_000, 3_000)
    assert first["attributes"]["tiercel.scores"] == [1.0, 2.0]
    assert first["events"] == [{"name": "first", "time_ns": 1_500}]
    assert read_spans(tmp_path / "traces", first["trace_id"]) == spans
    assert read_spans(tmp_path / "traces", "r3") == []


def test_lines_that_are_no_span_are_passed_over(tmp_path: Path) -> None:
    """One that a full disk has torn, and those of another file that lies in the folder."""
    telemetry = telemetry_to(tmp_path)
    identity = telemetry.begin(None)
    attributes = {"tiercel.request_id": "r1"}
    telemetry.emit(identity, "tiercel.request", start_ns=1, end_ns=2, attributes=attributes)
    telemetry.close()
    (path,) = tmp_path.iterdir()
    line = path.read_text()
    path.write_text(f"{line[:-9]}{line}{line}")
    (tmp_path / "prompts.jsonl").write_text('{"task": "r1"}\n["r1"]\n"r1"\n')
    assert len(read_spans(tmp_path, "r1")) == 1


def test_files_stay_within_their_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full file takes the place of the one before; the oldest files of a folder go."""
    monkeypatch.setattr(span_file, "MOST_FILES", 3)
    for number in range(5):
        (tmp_path / f"old-{number}.jsonl").touch()
    exporter = FileSpanExporter(tmp_path, "x", limit_bytes=0)
    assert len(list(tmp_path.iterdir())) == 3
    exporter.export([])
    exporter.export([])
    assert len(list(tmp_path.glob("x-*"))) == 1


def test_a_folder_that_cannot_be_written_turns_nothing_else_off(tmp_path: Path) -> None:
    """The service serves, without spans in files."""
    (tmp_path / "file").touch()
    assert not telemetry_to(tmp_path / "file" / "traces").enabled
