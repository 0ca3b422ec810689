"""Where spans go: the OTEL_* variables, and silence without a collector."""

from __future__ import annotations

import io
import logging
import random

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.log import configure_logging, get_logger
from services.common.telemetry_setup import setup_telemetry

LOG = get_logger("test")


def test_sampler_variable_decides_about_new_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_TRACES_SAMPLER is followed; callers' decisions are kept under parentbased."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    telemetry = setup_telemetry(
        "x",
        environ={"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"},
        rng=random.Random(1),
        log=LOG,
        exporter=InMemorySpanExporter(),
    )
    sampled = sum(telemetry.begin(None).sampled for _ in range(2000))
    assert 400 < sampled < 600
    assert telemetry.begin([("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")]).sampled


@pytest.mark.parametrize(
    ("environ", "enabled"),
    [
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1"}, False),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1"}, True),
    ],
)
def test_variables_choose_the_exporter(environ: dict[str, str], enabled: bool) -> None:
    """The standard variables decide; what is not understood turns traces off, not the process."""
    telemetry = setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG)
    assert telemetry.enabled is enabled
    telemetry.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_collector_that_is_away_costs_one_line(
    protocol: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Spans are dropped, the log says so once, nothing else is printed, the end is quick."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging(service="x", stream=stream)
    try:
        telemetry = setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG)
        for _ in range(3):
            telemetry.emit(telemetry.begin(None), "x", start_ns=1, end_ns=2)
        telemetry.close()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert capfd.readouterr().err == ""
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 1, lines
    assert all("telemetry_failing" in line for line in lines)
