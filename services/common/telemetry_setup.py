"""Where spans go: by OpenTelemetry's standard OTEL_* variables, and to a folder."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from router.messages import one_line
from services.common.addresses import HostPort
from services.common.channels import STRAIGHT
from services.common.log import Logger
from services.common.span_encoding import encode_spans
from services.common.span_file import FileSpanExporter
from services.common.telemetry import Telemetry
from services.common.telemetry_variables import understood

_FILE_DELAY_MS = 200.0
"""Spans in a file are looked at by a person who has just sent the request."""
_PACKAGES = {"grpc": "grpc", "http/protobuf": "http"}
"""Where the SDK has the exporter of each protocol."""
_CREDENTIALS = re.compile(r"OTEL_PYTHON_EXPORTER_OTLP_HTTP_(TRACES_)?CREDENTIAL_PROVIDER")
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def setup_telemetry(
    service_name: str,
    *,
    environ: Mapping[str, str],
    rng: random.Random,
    log: Logger,
    exporter: SpanExporter | None = None,
    sample_ratio: float = 1.0,
    folder: str = "",
) -> Telemetry:
    """Sets up traces as the OTEL_* variables say, and to a file where a folder is given.

    An exporter is made only if OTEL_TRACES_EXPORTER names one or an OTLP endpoint is given. A
    variable that is not understood is reported and counts as not set; nothing here ever raises.

    Args:
        service_name: `service.name` of the resource, unless OTEL_SERVICE_NAME gives another.
        environ: Environment variables.
        rng: Source of trace and span ids; seed it from the system in production.
        log: Where a variable nobody understands is reported, and the first exporter failure.
        exporter: Used instead of the variables' one (tests).
        sample_ratio: Share of traces begun here that are kept, unless OTEL_TRACES_SAMPLER is set.
        folder: Where spans are written as JSON lines too; empty for nowhere.
    """
    _route_sdk_logs(log)
    usable, problems = understood(environ)
    for problem in problems:
        log.warning(
            "telemetry_variable_ignored",
            variable=problem.variable,
            got=problem.got,
            allowed=problem.allowed,
        )
    try:
        with _hidden_from_sdk(environ.keys() - usable.keys()):
            exporters = {
                exporter or _exporter(usable, log): None,
                _file_exporter(folder, service_name, log): _FILE_DELAY_MS,
            }
            provider = _provider(service_name, usable, exporters, sample_ratio)
    except Exception as error:  # whatever the SDK makes of a variable: the service serves
        given = ", ".join(sorted(name for name in usable if name.startswith("OTEL_")))
        log.warning("telemetry_off", problem=one_line(f"{error!r}"), variables=given)
        provider = None
    return Telemetry(provider, rng)


def _provider(
    service_name: str,
    environ: Mapping[str, str],
    exporters: Mapping[SpanExporter | None, float | None],
    sample_ratio: float,
) -> TracerProvider | None:
    """Returns what makes the spans; None if there shall be none.

    Args:
        service_name: `service.name` of the resource, unless a variable gives another.
        environ: Environment variables that are understood.
        exporters: Where spans go, each with the longest time a span waits for others, ms; None
            there leaves it to the SDK.
        sample_ratio: Share of traces begun here that are kept.
    """
    chosen = {each: delay_ms for each, delay_ms in exporters.items() if each is not None}
    if not chosen or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    named = environ.get("OTEL_SERVICE_NAME") or service_name
    named_sampler = bool(environ.get("OTEL_TRACES_SAMPLER"))
    provider = TracerProvider(
        # None lets the SDK follow OTEL_TRACES_SAMPLER.
        sampler=None if named_sampler else ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=Resource.create({SERVICE_NAME: named, "process.pid": os.getpid()}),
        shutdown_on_exit=False,
    )
    for each, delay_ms in chosen.items():
        provider.add_span_processor(BatchSpanProcessor(each, schedule_delay_millis=delay_ms))
    return provider


def _file_exporter(folder: str, service_name: str, log: Logger) -> SpanExporter | None:
    try:
        return FileSpanExporter(Path(folder), service_name) if folder else None
    except OSError as error:
        log.warning("spans_not_kept", folder=folder, problem=error.strerror or str(error))
        return None


@contextlib.contextmanager
def _hidden_from_sdk(names: Set[str]) -> Iterator[None]:
    """Takes variables out of the process's environment, which is where the SDK reads them."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _exporter(environ: Mapping[str, str], log: Logger) -> SpanExporter | None:
    names = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    has_endpoint = any(environ.get(name) for name in _ENDPOINT_VARIABLES)
    if names == "none" or (not names and not has_endpoint):
        return None
    if names == "console":
        return ConsoleSpanExporter()
    if names not in {"", "otlp"}:
        log.warning(
            "telemetry_off", variable="OTEL_TRACES_EXPORTER", got=names, known="otlp, console, none"
        )
        return None
    protocol = (
        environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    )
    if protocol in _PACKAGES:
        name = f"opentelemetry.exporter.otlp.proto.{_PACKAGES[protocol]}.trace_exporter"
        module: Any = importlib.import_module(name)
        # No option says how spans are written, but the name is looked up at every export.
        module.encode_spans = encode_spans
        made: SpanExporter = module.OTLPSpanExporter(**_options(environ, protocol))
        return made
    log.warning(
        "telemetry_off", variable="OTEL_EXPORTER_OTLP_PROTOCOL", got=protocol,
        known=", ".join(_PACKAGES),
    )  # fmt: skip
    return None


def _options(environ: Mapping[str, str], protocol: str) -> dict[str, Any]:
    """Returns arguments of an exporter, by which it uses no proxy for a collector on this machine.

    The exporters would send even these spans to the proxies that the environment names, whose
    loopback is another machine's.
    """
    is_local = _is_local(environ)
    if protocol == "grpc":
        return {"channel_options": STRAIGHT} if is_local else {}
    if not is_local and any(_CREDENTIALS.fullmatch(name) for name in environ):
        return {}  # the exporter takes the session that a package of the user's makes
    made = importlib.import_module("services.common.collector_session")
    return {"session": made.CollectorSession(is_straight=is_local)}


def _is_local(environ: Mapping[str, str]) -> bool:
    """Returns whether the collector is on this machine."""
    named = (environ.get(name, "").strip() for name in _ENDPOINT_VARIABLES)
    endpoint = next(filter(None, named), "http://localhost")
    host = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").hostname or ""
    return HostPort(host, 0).is_loopback


def _route_sdk_logs(log: Logger) -> None:
    """Lets the SDK report a failure once; a collector that is down would fill the log otherwise."""
    sdk = logging.getLogger("opentelemetry")
    sdk.handlers[:] = [_OnceHandler(log)]
    sdk.propagate = False
    sdk.setLevel(logging.WARNING)
    # What is wrong with the trace context that a caller sends is no failure of ours: it would be
    # the one line, with the caller's text in it, and the exporter's first failure would be none.
    logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)


class _OnceHandler(logging.Handler):
    """Passes the first record on as one line without a traceback, and drops the rest."""

    def __init__(self, log: Logger) -> None:
        super().__init__()
        self._log = log
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if self._told:
            return
        self._told = True
        text = record.getMessage().splitlines()[0] if record.getMessage() else ""
        self._log.warning("telemetry_failing", problem=text, note="not repeated")
