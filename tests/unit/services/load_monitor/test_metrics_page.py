"""Reading queue depths off Triton's metrics page."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.load_monitor.metrics_page import (
    MetricsPageError,
    parse_queue_depths,
    read_queue_depths,
)
from tests.waiting import LIMIT_S

PAGE = b"""# HELP nv_inference_pending_request_count Pending requests per model
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="small",version="1"} 3
nv_inference_pending_request_count{model="small",version="2"} 1
nv_inference_pending_request_count{model="opt",version="1"} 0
nv_inference_request_success{model="small",version="1"} 9
"""


def test_depths_are_summed_over_versions() -> None:
    """Only the pending gauge counts."""
    assert parse_queue_depths(PAGE) == {"small": 4, "opt": 0}
    assert parse_queue_depths(b"") == {}


def test_depths_of_vllm_are_summed_over_engines() -> None:
    """By the name that it serves; other gauges of that beginning do not count."""
    page = b"""# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="small"} 3.0
vllm:num_requests_waiting{engine="1",model_name="small"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="small",reason="capacity"} 9.0
"""
    assert parse_queue_depths(page) == {"small": 5}


@given(st.text(max_size=60))
def test_any_line_is_read_or_refused(rest: str) -> None:
    """Whatever stands behind the gauge's name, depths are counts or there is an error."""
    try:
        depths = parse_queue_depths(f"nv_inference_pending_request_count{{{rest}".encode())
    except (ValueError, ArithmeticError, LookupError):
        return
    assert all(0 <= depth < 2**31 for depth in depths.values())


@pytest.mark.parametrize("value", ["-1", "1e30", "1e999", "-1e999", "NaN", "+Inf", str(2**64 - 1)])
def test_what_is_no_count_is_refused(value: str) -> None:
    """A depth that no message can carry must not reach the picture."""
    page = f'nv_inference_pending_request_count{{model="small"}} {value}'
    with pytest.raises((ValueError, OverflowError)):
        parse_queue_depths(page.encode())


def test_a_page_of_too_many_models_is_refused() -> None:
    """Reading it would hold up everything else."""
    lines = [f'nv_inference_pending_request_count{{model="m{n}"}} 0' for n in range(2_001)]
    with pytest.raises(ValueError, match="lines"):
        parse_queue_depths("\n".join(lines).encode())


async def serve(answer: bytes) -> tuple[asyncio.Server, str]:
    """Starts a server that sends `answer` (nothing if empty) and returns its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer:
            writer.write(answer)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_page_is_read_over_http() -> None:
    """The body of a 200 is parsed."""
    server, address = await serve(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + PAGE)
    assert await read_queue_depths(address, timeout_s=LIMIT_S) == {"small": 4, "opt": 0}
    server.close()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "answered"),
        (b"garbage", "answered"),
        (b"", "did not come within 0.1 s"),
        (b"HTTP/1.1 200 OK\r\n\r\nnv_inference_pending_request_count{model=\n", "metrics of"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + PAGE.replace(b"} 3", b"} 1e999"), "metrics of"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (5 * 1024 * 1024), "larger than"),
    ],
)
async def test_page_that_cannot_be_read(answer: bytes, problem: str) -> None:
    """Whatever the server does is one kind of error, in bounded time and memory."""
    server, address = await serve(answer)
    timeout_s = LIMIT_S if answer else 0.1
    with pytest.raises(MetricsPageError, match=problem):
        await read_queue_depths(address, timeout_s=timeout_s)
    server.close()


async def test_nobody_listens() -> None:
    """A refused connection is the same kind of error."""
    server, address = await serve(b"")
    server.close()
    await server.wait_closed()
    with pytest.raises(MetricsPageError, match="metrics of"):
        await read_queue_depths(address, timeout_s=LIMIT_S)
