"""Where spans go: the OTEL_* variables, and silence without a collector."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, cast

import grpc
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common.log import configure_logging, get_logger
from services.common.telemetry_setup import _options, setup_telemetry
from tests.fakes.otlp_sink import OtlpSink
from tests.waiting import LIMIT_S

LOG = get_logger("test")


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[str]]]:
    """What the process has logged."""
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging(service="x", stream=stream)
    yield lambda: stream.getvalue().splitlines()
    root.handlers[:] = handlers
    root.setLevel(level)


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
    protocol: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    log_lines: Callable[[], list[str]],
) -> None:
    """Spans are dropped, the log says so once, nothing else is printed, the end is quick."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    telemetry = setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG)
    for _ in range(3):
        telemetry.emit(telemetry.begin(None), "x", start_ns=1, end_ns=2)
    telemetry.close()
    assert capfd.readouterr().err == ""
    lines = log_lines()
    assert len(lines) <= 1, lines
    assert all("telemetry_failing" in line for line in lines)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", ""),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "ten"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "no header"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/none/ca.pem"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "x"),
        ("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-5"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", ""),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1000000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_BSP_SCHEDULE_DELAY", "-1"),
        ("OTEL_TRACES_SAMPLER", "dice"),
        ("OTEL_TRACES_SAMPLER_ARG", "half"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=b,=,c"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "none-such"),
        ("OTEL_ID_GENERATOR", "none-such"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "perhaps"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:99999"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://h:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://"),
    ],
)
def test_no_variable_stops_a_service(
    protocol: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever OTEL_* variables say, there is a telemetry, and requests go on."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        variable: value,
    }
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    telemetry = setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG)
    telemetry.begin(None)
    telemetry.close()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_ATTRIBUTE_COUNT_LIMIT", "x"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
        ("OTEL_TRACES_SAMPLER_ARG", "half"),
    ],
)
def test_the_warning_names_the_variable(
    variable: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: Callable[[], list[str]],
) -> None:
    """Who set it finds it: variable and value are in the one line that warns."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_TRACES_SAMPLER": "traceidratio",
        variable: value,
    }
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG).close()
    (line,) = [line for line in log_lines() if variable in line]
    assert value in line


def test_an_empty_variable_counts_as_not_set(
    monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    """As OpenTelemetry's specification says; nobody is warned."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "",
    }
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    telemetry = setup_telemetry("x", environ=environ, rng=random.Random(1), log=LOG)
    assert telemetry.enabled
    telemetry.close()
    assert log_lines() == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"traceparent": "x" * 1_000},
        {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "NO=b"},
        {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "a=b," * 5_000},
    ],
    ids=["long", "state", "states"],
)
def test_what_a_caller_sends_hides_no_failure(
    metadata: dict[str, str], log_lines: Callable[[], list[str]]
) -> None:
    """Of all failures one is told, and it is not that of a stranger's header."""
    telemetry = setup_telemetry(
        "x", environ={}, rng=random.Random(1), log=LOG, exporter=InMemorySpanExporter()
    )
    telemetry.begin(list(metadata.items()))
    assert log_lines() == []
    logging.getLogger("opentelemetry.exporter.otlp").warning("nobody listens")
    (line,) = log_lines()
    assert "nobody listens" in line
    telemetry.close()


@contextlib.contextmanager
def collector(protocol: str) -> Iterator[tuple[str, list[object]]]:
    """Runs a collector; yields its endpoint, and what has come."""
    if protocol != "grpc":
        sink = OtlpSink()
        yield sink.endpoint, cast("list[object]", sink.spans)
        sink.close()
        return
    came: list[object] = []

    def export(request: bytes, _: object) -> bytes:
        came.append(request)
        return b""

    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    methods: dict[str, Any] = {"Export": grpc.unary_unary_rpc_method_handler(export)}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", came
    server.stop(0).wait(timeout=LIMIT_S)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "all_proxy", "grpc_proxy"])
def test_a_collector_on_this_machine_is_called_past_any_proxy(
    protocol: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy's loopback is another machine's."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(proxy, "http://127.0.0.1:1")
    with collector(protocol) as (endpoint, came):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        telemetry = setup_telemetry("x", environ=os.environ, rng=random.Random(1), log=LOG)
        telemetry.emit(telemetry.begin(None), "x", start_ns=1, end_ns=2)
        telemetry.close()
        assert len(came) == 1


@pytest.mark.parametrize(
    ("endpoint", "is_straight"),
    [
        ("", True),  # then it is localhost
        ("localhost:4317", True),
        ("http://127.0.0.1:4318", True),
        ("https://[::1]:4317", True),
        ("http://collector:4317", False),
        ("10.0.0.5:4317", False),
        ("https://otel.example", False),
    ],
)
def test_a_collector_elsewhere_may_be_behind_a_proxy(endpoint: str, is_straight: bool) -> None:
    """As every other program's is."""
    environ = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    assert bool(_options(environ, "grpc")) is is_straight
    assert _options(environ, "http/protobuf")["session"].trust_env is not is_straight


def test_a_session_of_the_users_own_is_left_to_the_exporter() -> None:
    """A package may make one that shows credentials."""
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example",
        "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": "mine",
    }
    assert _options(environ, "http/protobuf") == {}
