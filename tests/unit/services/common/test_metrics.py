"""Counts and times of calls, plain until they are scraped."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.common.metrics import (
    Page,
    RpcMetrics,
    Tally,
    new_registry,
    start_metrics_server,
)
from tests.waiting import LIMIT_S, until


def test_buckets_are_cumulative_and_hold_their_bound() -> None:
    """As Prometheus reads them: each bucket counts all values up to its bound."""
    tally = Tally((0.1, 1.0))
    for value in (0.1, 0.5, 5.0):
        tally.observe(value)
    assert tally.buckets() == [("0.1", 1.0), ("1.0", 2.0), ("+Inf", 3.0)]
    assert tally.total == pytest.approx(5.6)


def test_a_page_may_tell_fewer_buckets_than_are_counted() -> None:
    """What is left out is part of the next one."""
    tally = Tally((0.1, 0.2, 1.0))
    for value in (0.05, 0.15, 0.5, 2.0):
        tally.observe(value)
    assert tally.buckets((0.1, 1.0)) == [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert list(tally.counts) == [1, 1, 1, 1]


def test_a_scrape_tells_calls_by_method_code_and_reason() -> None:
    """A method is there with zeros from its start; an error stands under its reason."""
    registry = CollectorRegistry()
    metrics = RpcMetrics(registry)
    times = metrics.add_method("x.Y/Ask")
    page = generate_latest(registry).decode()
    assert 'tiercel_rpc_handled_total{code="OK",method="x.Y/Ask",reason=""} 0.0' in page
    assert 'tiercel_rpc_duration_seconds_count{method="x.Y/Ask"} 0.0' in page
    for code, reason in (("OK", ""), ("OK", ""), ("NOT_FOUND", "TASK_NOT_FOUND")):
        metrics.count("x.Y/Ask", code, reason)
        times.observe(0.002)
    page = generate_latest(registry).decode()
    assert 'handled_total{code="OK",method="x.Y/Ask",reason=""} 2.0' in page
    assert 'handled_total{code="NOT_FOUND",method="x.Y/Ask",reason="TASK_NOT_FOUND"} 1.0' in page
    assert 'duration_seconds_bucket{le="0.0025",method="x.Y/Ask"} 3.0' in page
    assert 'duration_seconds_sum{method="x.Y/Ask"} 0.006' in page


async def test_pages_are_served_beside_the_metrics() -> None:
    """By their paths and to readers alone; every other path is the metrics, as ever."""
    pages = {"/": Page([("Content-Type", "text/html")], lambda: b"<p>hello</p>")}
    server = start_metrics_server("127.0.0.1:0", new_registry(), pages)
    try:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{server.address}") as http:
            page = await http.get("/")
            assert (page.text, page.headers["content-type"]) == ("<p>hello</p>", "text/html")
            for path in ("/metrics", "/anything"):
                assert "process_open_fds" in (await http.get(path)).text
            assert (await http.post("/")).status_code == 405
    finally:
        await server.close()


def test_numbers_stay_in_the_process_whatever_other_services_of_the_machine_need(
    tmp_path: Path,
) -> None:
    """A folder for the numbers of many processes, which is not there: nothing is written to it."""
    folder = tmp_path / "none"
    program = (
        "from services.common.metrics import RpcMetrics, new_registry\n"
        "registry = new_registry()\n"
        "RpcMetrics(registry).running.set(3)\n"
        "print(registry.get_sample_value('tiercel_rpc_running'))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("3.0\n", "")


@pytest.mark.parametrize("kind", ["application/openmetrics-text", "text/plain"])
async def test_a_version_that_is_no_number_is_none(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The metrics come in their oldest form, and nothing is printed."""
    server = start_metrics_server("127.0.0.1:0", new_registry())
    try:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{server.address}") as http:
            page = await http.get("/metrics", headers={"accept": f"{kind}; version=1.x"})
        assert (page.status_code, "process_open_fds" in page.text) == (200, True)
    finally:
        await server.close()
    assert capfd.readouterr().err == ""


async def test_readers_are_few_and_brief(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is beyond is hung up on, and what takes too long; one that leaves is no error."""
    monkeypatch.setattr("services.common.metrics._MOST_READERS", 1)
    monkeypatch.setattr("services.common.metrics._LONGEST_S", 0.5)
    server = start_metrics_server("127.0.0.1:0", new_registry())
    try:
        slow_reader, slow_writer = await asyncio.open_connection(*server.address)
        slow_writer.write(b"GET /metrics HTTP/1.1\r\n")
        refused, other = await asyncio.open_connection(*server.address)
        assert await asyncio.wait_for(refused.read(), LIMIT_S) == b""
        assert await asyncio.wait_for(slow_reader.read(), LIMIT_S) == b""
        for writer in (slow_writer, other):
            writer.close()
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{server.address}") as http:

            async def is_answered() -> bool:
                with suppress(httpx.TransportError):
                    return (await http.get("/metrics")).status_code == 200
                return False

            await until(is_answered, "there is room again")
            _, leaving = await asyncio.open_connection(*server.address)
            leaving.write(b"GET /")
            own: socket.socket = leaving.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            leaving.transport.abort()
            await until(is_answered, "who left is forgotten")
    finally:
        await server.close()
    assert capfd.readouterr().err == ""


async def test_a_web_page_that_has_its_name_lead_here_is_refused() -> None:
    """Its browser would let it read the numbers; names of the settings are the reader's own."""
    server = start_metrics_server("127.0.0.1:0", new_registry(), hosts=["mesh.example"])
    try:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://{server.address}") as http:
            for host, is_own in (("rebound.example", False), ("mesh.example:80", True)):
                page = await http.get("/metrics", headers={"host": host})
                assert page.status_code == (200 if is_own else 403)
                assert ("process_open_fds" in page.text) == is_own
    finally:
        await server.close()
