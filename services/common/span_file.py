"""Spans as JSON lines in files, for one machine without a collector; `tiercel trace` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

LIMIT_BYTES = 32 * 1024 * 1024
"""A file of this size is set aside as `.old`, in the place of the one before."""
MOST_FILES = 64
"""Files kept in a folder, the newest; each process writes one of its own."""
_SUFFIX = ".jsonl"
_KEYS = {
    "trace_id", "span_id", "parent_span_id", "name", "service", "start_ns", "end_ns", "error",
    "attributes", "events",
}  # fmt: skip


class FileSpanExporter(SpanExporter):
    """Appends spans to a file of this process, which stays within `2 * limit_bytes`."""

    def __init__(self, folder: Path, service: str, *, limit_bytes: int = LIMIT_BYTES) -> None:
        """Makes the folder; raises OSError if it cannot be written to."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{service}-{os.getpid()}{_SUFFIX}"
        self._path.touch()
        self._limit_bytes = limit_bytes
        for path in _newest_first(folder)[MOST_FILES:]:
            path.unlink(missing_ok=True)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes the spans; a full disk loses them and nothing else."""
        text = "".join(f"{json.dumps(_document(span))}\n" for span in spans)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
                size = file.tell()
            if size > self._limit_bytes:
                self._path.replace(self._path.with_suffix(f".old{_SUFFIX}"))
        except OSError:
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS


def read_spans(folder: Path, name: str) -> list[dict[str, Any]]:
    """Returns the spans of a trace, of which `name` is the id, or the id of a request in it."""
    found = [span for span in _spans(folder, name) if _is_named(span, name)]
    traces = {span["trace_id"] for span in found}
    return [span for trace in traces for span in _spans(folder, trace) if span["trace_id"] == trace]


def _spans(folder: Path, text: str) -> Iterator[dict[str, Any]]:
    for path in _newest_first(folder):
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if text in line and line.endswith("\n") and (span := _read(line)):
                    yield span


def _read(line: str) -> dict[str, Any]:
    """Returns a span; an empty one for a line of something else, which a folder may hold too."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):  # cut off, torn by a full disk, or somebody else's
        return {}
    is_span = isinstance(found, dict) and found.keys() >= _KEYS
    return found if is_span else {}


def _is_named(span: Mapping[str, Any], name: str) -> bool:
    return name in (span["trace_id"], span["attributes"].get("tiercel.request_id"))


def _newest_first(folder: Path) -> list[Path]:
    paths = [(path.stat().st_mtime, path) for path in folder.glob(f"*{_SUFFIX}")]
    return [path for _, path in sorted(paths, reverse=True)]


def _document(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
        "parent_span_id": format_span_id(span.parent.span_id) if span.parent else "",
        "name": span.name,
        "service": span.resource.attributes.get(SERVICE_NAME, ""),
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "error": span.status.description if not span.status.is_ok else None,
        "attributes": dict(span.attributes or {}),
        "events": [{"name": event.name, "time_ns": event.timestamp} for event in span.events],
    }
