"""Log lines: one event and its fields, as text or JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from services.common.log import LogFormat, LogLevel, configure_logging, get_logger


@pytest.fixture(autouse=True)
def _keep_handlers() -> Iterator[None]:
    """Puts pytest's own handlers back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(log_format: LogFormat, level: LogLevel = "info") -> io.StringIO:
    """Configures logging into a text buffer."""
    stream = io.StringIO()
    configure_logging(service="trainer", log_format=log_format, level=level, stream=stream)
    return stream


def test_text_lines_quote_what_holds_spaces() -> None:
    """Fields are key=value; awkward values are quoted, so that a line stays one line."""
    stream = written("text")
    get_logger("a").info("endpoint_down", endpoint="e1", reason='no "route"\nhere', age_s=0.1234567)
    (line,) = stream.getvalue().splitlines()
    _, _, rest = line.partition("INFO")
    assert rest.split() == [
        "trainer",
        "endpoint_down",
        "endpoint=e1",
        'reason="no',
        '\\"route\\"\\nhere"',
        "age_s=0.123457",
    ]


@pytest.mark.parametrize("value", ["\x1b[31mred", "one\x0btwo", "one\u2028two", "one\ntwo"])
def test_what_cannot_be_seen_is_escaped(value: str) -> None:
    """It would colour the reader's terminal, or begin a line of its own."""
    stream = written("text")
    get_logger("a").info("endpoint_down", reason=value)
    (line,) = stream.getvalue().splitlines()
    assert line.endswith(f"reason={json.dumps(value)}")


def test_json_lines_hold_fields_and_traceback() -> None:
    """Every line is one JSON object; values JSON does not know become text."""
    stream = written("json")
    try:
        raise KeyError("x")
    except KeyError as error:
        get_logger("a").exception("rpc_bug", error, method="M", kind=KeyError)
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["service"], entry["level"]) == ("rpc_bug", "trainer", "error")
    assert entry["method"] == "M"
    assert "KeyError: 'x'" in entry["traceback"]
    assert "class" in entry["kind"]


def test_level_leaves_out_what_is_less_severe() -> None:
    """`warning` drops info lines."""
    stream = written("text", "warning")
    log = get_logger("a")
    log.debug("one")
    log.info("two")
    log.warning("three")
    log.error("four")
    assert [line.split()[3] for line in stream.getvalue().splitlines()] == ["three", "four"]


def test_lines_of_a_worker_have_its_number() -> None:
    """In text behind the name of the service, in JSON as a field; without workers there is none."""
    stream = io.StringIO()
    configure_logging(service="router", stream=stream, worker=2)
    get_logger("a").info("serving")
    configure_logging(service="router", log_format="json", stream=stream, worker=2)
    get_logger("a").info("serving")
    text, line = stream.getvalue().splitlines()
    assert " router/2 serving" in text
    assert (json.loads(line)["service"], json.loads(line)["worker"]) == ("router", 2)
    stream = written("json")
    get_logger("a").info("serving")
    assert "worker" not in json.loads(stream.getvalue())
