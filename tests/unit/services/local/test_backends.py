"""Commands of the real Redis and Triton."""

from __future__ import annotations

import pathlib

import pytest

from services.local import probes
from services.local.backends import redis_command, trace_endpoint
from services.local.child import Child, ChildSpec
from services.local.ports import PortClaims


async def test_the_embedded_redis_starts_and_answers(tmp_path: pathlib.Path) -> None:
    """The real server, on a free port, ready by PING."""
    claims = PortClaims()
    port = claims.any_free()
    spec = ChildSpec(
        name="redis",
        command=redis_command(port, tmp_path),
        is_ready=lambda: probes.redis_answers(f"127.0.0.1:{port}"),
        log_path=tmp_path / "redis.log",
        stage=0,
    )
    child = Child(spec)
    await child.start()
    await child.stop()
    assert not child.is_running
    claims.release()


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:99999"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "nonsense"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "http://c:4318/v1/traces"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:99/",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://c:99/v1/traces",
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:99/x",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            "http://c:99/x",
        ),
    ],
)
def test_triton_gets_the_standard_trace_address(variables: dict[str, str], endpoint: str) -> None:
    """Triton speaks OTLP over HTTP whatever the services speak."""
    assert trace_endpoint(variables) == endpoint
