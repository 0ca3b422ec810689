"""One trace from client through router into Triton, from a real run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from tests.e2e.mesh import Mesh, start_mesh, stop_mesh
from tests.fakes.otlp_sink import OtlpSink, Span, edges
from tests.waiting import LIMIT_S, until_sync
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb_grpc

pytestmark = [pytest.mark.e2e, pytest.mark.triton, pytest.mark.timeout(500)]

CLIENT = ("client", "ask")
REQUEST = ("router-inference", "tiercel.request")
DECISION = ("router-inference", "tiercel.decision")
DISPATCH = ("router-inference", "tiercel.dispatch")
# Paced models are named by their device: gpu0_large serves the tier large.
TIER = ("triton", "gpu0_large")
ATTEMPTS = 8
# Long, as no test here is about the time that the answer takes.
DEADLINE_S = 20
# Triton exports once per second.
EXPORT_LIMIT_S = 5.0
EDGES = [
    # (parent, child), each (service, span)
    (CLIENT, REQUEST),
    (REQUEST, DECISION),
    (REQUEST, DISPATCH),
    (DISPATCH, ("triton", "InferRequest")),
    (("triton", "InferRequest"), TIER),
    (TIER, ("triton", "compute")),
]


@pytest.fixture(scope="module")
def sink() -> Iterator[OtlpSink]:
    """A collector on loopback."""
    collector = OtlpSink()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def traced_mesh(sink: OtlpSink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that exports to the collector by the standard variables alone."""
    folder: Path = tmp_path_factory.mktemp("traced")
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    running = start_mesh(folder, "--no-trainer", variables=variables)
    left = ["it was never stopped"]
    try:
        yield running
    finally:
        left = stop_mesh(running)
    assert left == []


@pytest.fixture(scope="module")
def spans(traced_mesh: Mesh, sink: OtlpSink) -> list[Span]:
    """The spans of one sampled request, the client's own included.

    The first of a few requests whose trace is whole: Triton overlooks the parent of some, see
    docs/operations.md.
    """
    found: list[Span] = []
    for _ in range(ATTEMPTS):
        own = _ask(traced_mesh.routers[0])

        def is_whole(own: Span = own) -> bool:
            found[:] = [own, *sink.of_trace(own.trace_id)]
            return edges(found).issuperset(EDGES)

        with suppress(AssertionError):
            until_sync(is_whole, "the trace is whole", EXPORT_LIMIT_S)
            break
    return found


def _ask(address: str) -> Span:
    """Sends a sampled request; returns the client's span."""
    tracer = TracerProvider().get_tracer("client")
    with (
        tracer.start_as_current_span("ask", kind=SpanKind.CLIENT) as span,
        grpc.insecure_channel(address) as channel,
    ):
        headers: dict[str, str] = {}
        inject(headers)
        context = span.get_span_context()
        stub = pb_grpc.RouterInferenceServiceStub(channel)
        # Pinned: a router in its first deadline takes the smallest tier.
        spec = pb.GenerationSpec(prompt="is it on the trace", task="piqa", tier="large")
        spec.deadline.FromSeconds(DEADLINE_S)
        answer = stub.Generate(
            pb.GenerateRequest(spec=spec), timeout=LIMIT_S, metadata=tuple(headers.items())
        )
    assert answer.completion.tier == "large"
    trace_id = trace.format_trace_id(context.trace_id)
    span_id = trace.format_span_id(context.span_id)
    return Span("client", "ask", trace_id, span_id, "", {}, ())


@pytest.mark.parametrize(("parent", "child"), EDGES, ids=lambda place: "/".join(place))
def test_the_trace_has_the_edge(
    spans: list[Span], parent: tuple[str, str], child: tuple[str, str]
) -> None:
    """Each edge of the table stands in the real trace."""
    found = edges(spans)
    assert (parent, child) in found, sorted(found)


def test_the_decision_span_explains_the_choice(spans: list[Span]) -> None:
    """It carries observation, score and predicted latency per candidate, choice, version, slack."""
    decision = next(span for span in spans if span.name == "tiercel.decision")
    attributes = decision.attributes
    candidates = attributes["tiercel.decision.candidates"]
    assert len(candidates) == 3
    assert attributes["tiercel.decision.choice"] in candidates
    for name in ("scores", "predicted_latency_s", "on_time_probability", "in_flight"):
        assert len(attributes[f"tiercel.decision.{name}"]) == 3
    assert attributes["tiercel.policy"] == "dqn"
    assert len(attributes["tiercel.policy_version"]) == 12
    assert 0.0 < attributes["tiercel.slack_s"] <= DEADLINE_S
    assert attributes["tiercel.arrival_rate_rps"] > 0.0
    assert attributes["tiercel.state_age_s"] >= 0.0
