"""aiperf at the OpenAI-shaped door: what is read of both sides, and what is said of it."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import pytest

from services.bench.aiperf import (
    NAME,
    DoorBook,
    Plan,
    book_of,
    numbers_of,
    options_of,
    problems_of,
    show,
    write_tokenizer,
)
from tests.unit.deploy.manifests import ROOT

PLAN = Plan(count=2)
PAGE = """
# TYPE tiercel_http_handled counter
tiercel_http_handled_total{code="",route="/v1/chat/completions",status="200"} 5.0
tiercel_http_handled_total{code="TOO_LATE",route="/v1/chat/completions",status="429"} 1.0
tiercel_http_handled_total{code="FULL",route="/v1/chat/completions",status="429"} 2.0
tiercel_http_handled_total{code="",route="/v1/models",status="200"} 9.0
# TYPE tiercel_http_duration_seconds histogram
tiercel_http_duration_seconds_bucket{le="+Inf",route="/v1/chat/completions"} 8.0
tiercel_http_duration_seconds_count{route="/v1/chat/completions"} 8.0
tiercel_http_duration_seconds_sum{route="/v1/chat/completions"} 2.5
"""
ALL_ANSWERED = DoorBook({"200": 2}, 1.0)


def export_of(**changes: Any) -> dict[str, Any]:
    """What aiperf itself reports of two requests that were answered whole."""
    latency = {"unit": "ms", "avg": 210.0, "p50": 200.0, "p75": 215.0, "p99": 1_220.0, "std": None}
    return {
        "aiperf_version": "1.2.3",
        "is_complete": True,
        "was_cancelled": False,
        "request_count": {"unit": "requests", "avg": 2.0},
        "request_latency": latency,
        "output_sequence_length": {"unit": "tokens", "avg": 7.5, "min": 6.0},
        "goodput": {"unit": "requests/sec", "avg": 1.0},
        **changes,
    }


def test_the_door_is_read_by_route() -> None:
    """Other routes do not count; codes of one status do together."""
    book = book_of(PAGE)
    assert book == DoorBook({"200": 5, "429": 3}, 2.5)
    since = book.since(DoorBook({"200": 3, "429": 3}, 1.0))
    assert since == DoorBook({"200": 2}, 1.5)
    assert book_of("") == DoorBook({}, 0.0)


def test_two_sides_that_agree_have_no_problem() -> None:
    """Every request answered, and none with nothing."""
    assert problems_of(export_of(), ALL_ANSWERED, PLAN) == []


@pytest.mark.parametrize(
    ("export", "door", "problem"),
    [
        ({"request_count": {"avg": 1.0}}, ALL_ANSWERED, r"counted 1 \(request_count\), not 2"),
        ({"request_count": None}, ALL_ANSWERED, r"counted 0 \(request_count\), not 2"),
        ({"error_request_count": {"avg": 1.0}}, ALL_ANSWERED, r"counted 1 \(error_request_count\)"),
        ({"output_sequence_length": {"min": 0.0}}, ALL_ANSWERED, "without a token"),
        ({"was_cancelled": True}, ALL_ANSWERED, "did not end its run"),
        ({"is_complete": False, "incomplete_reason": "why"}, ALL_ANSWERED, "its run: why"),
        ({}, DoorBook({"200": 2, "429": 1}, 1.0), "the door answered .*'429': 1.* 2 with status"),
    ],
)
def test_what_falls_short_is_named(export: dict[str, Any], door: DoorBook, problem: str) -> None:
    """One problem each, with what was counted."""
    [found] = problems_of(export_of(**export), door, PLAN)
    assert re.search(problem, found)


def test_the_table_has_a_row_for_each_run() -> None:
    """An answer in one piece has neither a first token nor a time between two."""
    first = {"unit": "ms", "avg": 40.0, "p50": 39.6, "p99": 55.5}
    between = {"unit": "ms", "avg": 20.4, "p50": 20.0, "p99": 22.0}
    streamed = export_of(time_to_first_token=first, inter_token_latency=between)
    runs = {
        name: {
            "numbers": numbers_of(export),
            "door": {"200": 2},
            "door_mean_ms": 207.7,
        }
        for name, export in (("streamed", streamed), ("whole", export_of()))
    }
    assert show({"runs": runs}).splitlines()[2:] == [
        "| streamed | 2 / 2 | 7.5 | 40 / 56 | 20.4 | 200 / 1,220 | 210.0 | 207.7 |",
        "| whole | 2 / 2 | 7.5 | - | - | 200 / 1,220 | 210.0 | 207.7 |",
    ]
    assert numbers_of(streamed)["request_latency"] == {
        "unit": "ms", "avg": 210.0, "p50": 200.0, "p99": 1_220.0,
    }  # fmt: skip


def test_a_token_is_a_byte(tmp_path: pathlib.Path) -> None:
    """Every byte has a letter of its own, as byte-level tokenizers spell it, and no two join."""
    write_tokenizer(tmp_path)
    model = tmp_path / "models--tiercel--bytes"
    folder = model / "snapshots" / (model / "refs" / "main").read_text()
    written = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = written["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    assert [vocabulary[letter] for letter in "AĠĊé"] == [0x41, 0x20, 0x0A, 0xE9]
    assert written["model"]["merges"] == []
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"


def test_its_deadline_is_a_text(tmp_path: pathlib.Path) -> None:
    """The door takes no other in `metadata`, as OpenAI has it."""
    options = options_of(PLAN, "127.0.0.1:7440", tmp_path)
    extra = json.loads(options[options.index("--extra-inputs") + 1])
    assert extra == {"metadata": {"tiercel_deadline_ms": "30000"}}
    assert options[options.index("--request-count") + 1] == "2"


def test_every_version_is_pinned() -> None:
    """By name and version alone."""
    lines = (ROOT / "requirements" / "aiperf.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert NAME in pins
    assert all(name and version for name, version in pins.items())
