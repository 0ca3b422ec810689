"""Spans of the caller's own: what OpenTelemetry's variables say never fails a call."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import warnings
from tiercel import Client, UnavailableError
with Client("127.0.0.1:1") as client:
    try:
        client.generate("ab", task="sort")
    except UnavailableError:
        print("called")
"""


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        ("OTEL_PROPAGATORS", "no spans are made: ValueError"),
        ("OTEL_PYTHON_TRACER_PROVIDER", "no span is made: StopIteration"),
    ],
)
def test_a_variable_that_names_what_is_not_installed_costs_spans_alone(
    variable: str, warning: str
) -> None:
    """The client is imported and calls; a warning says why there are no spans."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, variable: "none-such"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "called\n", done.stderr
    assert warning in done.stderr
