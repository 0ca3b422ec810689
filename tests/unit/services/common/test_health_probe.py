"""The probe that container images run: exit codes and output against a real server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry, start_http_server

from services.common.health_probe import main

# Each of them ends as soon as there is an answer.
PATIENT = ("--timeout-s", "30")


@pytest.fixture
def server() -> Iterator[tuple[str, health.HealthServicer]]:
    """Address and health of a server that says SERVING."""
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    running = grpc.server(ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, running)
    number = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{number}", servicer
    running.stop(grace=0).wait(timeout=5.0)


def test_serving_is_zero(
    server: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that says SERVING is well."""
    address, _ = server
    assert main([address, *PATIENT]) == 0
    assert capsys.readouterr().out == f"{address} SERVING\n"


def test_not_serving_is_one(
    server: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that drains is not."""
    address, servicer = server
    servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert main([address, *PATIENT]) == 1
    assert capsys.readouterr().out == f"{address} NOT_SERVING\n"


def test_unknown_service_is_one(
    server: tuple[str, health.HealthServicer], capsys: pytest.CaptureFixture[str]
) -> None:
    """A service the server does not know is not well."""
    address, _ = server
    assert main([address, "tiercel.none", *PATIENT]) == 1
    assert capsys.readouterr().out == f"{address} NOT_FOUND\n"


def test_nobody_there_is_one(
    free_port: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """An address where nobody listens is not well, within the timeout."""
    address = f"127.0.0.1:{free_port()}"
    assert main([address, *PATIENT]) == 1
    assert capsys.readouterr().out == f"{address} UNAVAILABLE\n"


def test_a_page_is_well_if_its_status_is_200(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A port where nobody listens is not."""
    registry = CollectorRegistry()
    server, thread = start_http_server(0, "127.0.0.1", registry)
    address = f"127.0.0.1:{server.server_port}"
    assert main([address, "--http", "/metrics", *PATIENT]) == 0
    assert capsys.readouterr().out == f"{address} 200\n"
    server.shutdown()
    server.server_close()
    thread.join()
    assert main([address, "--http", "/metrics", *PATIENT]) == 1
    assert capsys.readouterr().out == f"{address} ConnectionRefusedError\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["localhost"], "expected host:port"), (["127.0.0.1:1", "--timeout-s", "0"], "at most 60")],
)
def test_a_wrong_call_is_two(arguments: list[str], problem: str) -> None:
    """A wrong address or timeout is one clear line, not a traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "services.common.health_probe", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert problem in done.stderr
    assert "Traceback" not in done.stderr
