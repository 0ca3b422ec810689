"""One trace from a client's span through the router's process into a real Triton's own spans."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.local.triton.repository.paced import (
    PacedFleet,
    PacedRepository,
    write_paced_repository,
)
from services.local.triton.server.config import TritonServerConfig
from services.local.triton.server.process import TritonServer
from tests.fakes.otlp_sink import OtlpSink, Span, edges
from tests.fakes.router_process import mesh_toml, router_process
from tests.waiting import LIMIT_S, until
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc

pytestmark = pytest.mark.triton

EXPORT_LIMIT_S = 30.0
CLIENT_SPAN = "00f067aa0ba902b7"
# Several, because Triton overlooks the parent of some requests: see docs/operations.md.
TRACES = [f"{index:x}" * 32 for index in range(1, 9)]
UNSAMPLED = "a" * 32
PROFILE = """
name = "brisk"
source = "assumed"
[tiers.small]
step_s = 0.002
per_sequence_s = 0.0
per_prompt_token_s = 0.0
"""
# (service, span) below (service, span); the client's span is the test's own.
EDGES = {
    (("client", "call"), ("router-inference", "tiercel.request")),
    (("router-inference", "tiercel.request"), ("router-inference", "tiercel.decision")),
    (("router-inference", "tiercel.request"), ("router-inference", "tiercel.dispatch")),
    (("router-inference", "tiercel.dispatch"), ("triton", "InferRequest")),
    (("triton", "InferRequest"), ("triton", "gpu0_small")),
    (("triton", "gpu0_small"), ("triton", "compute")),
}


@pytest.fixture
def sink() -> Iterator[OtlpSink]:
    """A collector."""
    opened = OtlpSink()
    yield opened
    opened.close()


def _repository(folder: Path) -> PacedRepository:
    profile = folder / "profile.toml"
    profile.write_text(PROFILE, encoding="utf-8")
    fleet = PacedFleet(profile=profile, tiers=("small",), device_count=1)
    return write_paced_repository(folder / "fleet", fleet)


async def test_one_trace_from_the_client_into_triton(tmp_path: Path, sink: OtlpSink) -> None:
    """The edges of a sampled request, as a table; an unsampled one leaves no trace."""
    server = TritonServer(
        TritonServerConfig(
            repository=_repository(tmp_path).servers[0].path,
            log_path=tmp_path / "triton.log",
            trace_endpoint=f"{sink.endpoint}/v1/traces",
        )
    )
    await server.start_async()
    try:
        toml = mesh_toml(
            [("e0", server.grpc_address)],
            tiers=("small",),
            endpoint='models = { small = "gpu0_small" }',
        )
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with router_process(tmp_path, toml, environ=environ) as router:
            await _ask(router.address)
        # Leaving the router's process flushed its spans. Triton exports on its own schedule of a
        # few seconds, and a stop that runs into its exit timeout loses what it still holds.
        await until(lambda: _whole(sink), "a whole trace is exported", EXPORT_LIMIT_S)
    finally:
        await server.stop_async()
    whole = _whole(sink)
    assert whole, [edges(_spans(sink, trace)) for trace in TRACES]
    spans = sink.of_trace(whole[0])
    [decision] = [span for span in spans if span.name == "tiercel.decision"]
    assert decision.attributes["tiercel.decision.choice"] == "small@e0"
    assert decision.attributes["tiercel.policy_version"].startswith("price@")
    [request] = [span for span in spans if span.name == "tiercel.request"]
    assert request.events == ("gen_ai.first_token",)
    # Triton takes the text of a `traceparent` for zero-terminated, so it may trace any request.
    own = {span.trace_id for span in sink.spans if span.service != "triton"}
    assert own == set(TRACES)


async def _ask(address: str) -> None:
    spec = pb2.GenerationSpec(prompt="hello", task="piqa", max_output_tokens=4)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
        for trace, flags in (*((each, "01") for each in TRACES), (UNSAMPLED, "00")):
            response = await stub.Generate(
                pb2.GenerateRequest(spec=spec),
                timeout=LIMIT_S,
                metadata=(("traceparent", f"00-{trace}-{CLIENT_SPAN}-{flags}"),),
            )
            assert response.completion.on_time


def _whole(sink: OtlpSink) -> list[str]:
    """Returns the traces that have every edge of the table."""
    return [trace for trace in TRACES if edges(_spans(sink, trace)) == EDGES]


def _spans(sink: OtlpSink, trace: str) -> list[Span]:
    """Returns the spans of a trace, the test's own included."""
    return [Span("client", "call", trace, CLIENT_SPAN, "", {}, ()), *sink.of_trace(trace)]
