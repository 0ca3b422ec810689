"""What operators see of a real Envoy of `deploy/envoy`, and how it leaves a bad server alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes.envoy import lead_to
from tests.fakes.http_tier import HttpTier
from tests.integration.test_envoy import TASK, addresses_of, meshed
from tests.waiting import until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
EJECTIONS = "cluster.tiers.outlier_detection.ejections_enforced_total"


class Collector(otlp_grpc.TraceServiceServicer):
    """Takes spans by OTLP over gRPC."""

    def __init__(self) -> None:
        """Starts with none."""
        self.spans: list[Span] = []
        self.services: set[str] = set()

    async def Export(
        self, request: otlp_pb.ExportTraceServiceRequest, context: Any
    ) -> otlp_pb.ExportTraceServiceResponse:
        """Keeps what it is sent."""
        for each in request.resource_spans:
            self.services |= {
                pair.value.string_value
                for pair in each.resource.attributes
                if pair.key == "service.name"
            }
            for scope in each.scope_spans:
                self.spans += scope.spans
        return otlp_pb.ExportTraceServiceResponse()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    """Runs a collector; yields it and its address."""
    server, kept = grpc.aio.server(), Collector()
    add: Any = otlp_grpc.add_TraceServiceServicer_to_server
    add(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield kept, f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


def entries(log: Path) -> list[Mapping[str, Any]]:
    """Returns the access log's entries."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


async def test_the_access_log_tells_who_was_asked(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """One line of JSON a request: task, model, endpoint, attempts, and no prompt."""
    async with meshed(tmp_path, addresses_of(*two_tiers)) as mesh:
        reply = await mesh.post(prompt="secret words")
        # Envoy writes what it has gathered every ten seconds.
        await until(lambda: entries(mesh.envoy.log), "Envoy has written its access log")
        [entry] = entries(mesh.envoy.log)
        assert (entry["request_id"], entry["status"]) == (reply.headers["x-request-id"], 200)
        assert (entry["task"], entry["path"]) == ("piqa", "/v2/models/large/generate_stream")
        assert entry["endpoint"] in {tier.address for tier in two_tiers}
        assert (entry["model"], entry["attempts"]) == ("large", 1)
        assert entry["bytes_in"] > 0
        assert entry["bytes_out"] > 0
        assert "secret" not in mesh.envoy.log.read_text(encoding="utf-8")


async def test_a_trace_goes_through_to_the_server(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """A caller's trace is continued: Envoy's spans reach the collector, the server hears of it."""
    async with collector() as (kept, address):

        def change(config: dict[str, Any]) -> dict[str, Any]:
            lead_to(config, "collector", [address])
            return config

        async with meshed(tmp_path, addresses_of(*two_tiers), change=change) as mesh:
            parent = f"00-{TRACE_ID}-b7ad6b7169203331-01"
            assert (await mesh.post(traceparent=parent)).status_code == 200
            await until(lambda: kept.spans, "Envoy has exported its spans")
            assert {span.trace_id.hex() for span in kept.spans} == {TRACE_ID}
            assert kept.services == {"envoy"}
            [headers] = [each for tier in two_tiers for each in tier.headers]
            assert headers["traceparent"].split("-")[1] == TRACE_ID
            told = headers["traceparent"].split("-")[2]
            assert told in {span.span_id.hex() for span in kept.spans}


async def test_a_server_that_fails_again_and_again_is_left_alone(
    tmp_path: Path, two_tiers: tuple[HttpTier, HttpTier]
) -> None:
    """Also without a router: Envoy ejects it, clients hear nothing, and it is asked again later."""
    bad, good = two_tiers
    async with meshed(tmp_path, addresses_of(bad, good)) as mesh:
        await mesh.router.server.stop(0.0)
        bad.status = 503

        async def ejected() -> bool:
            assert (await mesh.client.post(**request())).status_code == 200
            return await mesh.envoy.counter(EJECTIONS) > 0

        await until(ejected, "the bad server is ejected")
        assert good.paths
        bad.status, asked = 200, len(bad.paths)

        async def asked_again() -> bool:
            assert (await mesh.client.post(**request())).status_code == 200
            return len(bad.paths) > asked

        await until(asked_again, "the server that is well again is asked")


def request() -> dict[str, Any]:
    """Returns a request's arguments."""
    body = {"text_input": "w", "stream": True, "sampling_parameters": '{"max_tokens": 4}'}
    return {"url": "/v2/models/tiercel/generate_stream", "json": body, "headers": TASK}
