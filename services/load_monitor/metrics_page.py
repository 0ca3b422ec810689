"""Reads the queue depths off a Prometheus page: Triton's, or vLLM's own."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from services.common.addresses import parse_address

_MODEL_OF_GAUGE = {
    "nv_inference_pending_request_count": "model",
    "vllm:num_requests_waiting": "model_name",
}
"""The gauges by name, and the label of each that names the model."""
_STARTS = tuple(f"{gauge}{{" for gauge in _MODEL_OF_GAUGE)
_LARGEST_PAGE_BYTES = 1024 * 1024
_MOST_LINES = 2_000
_MOST_WAITING = 2**31 - 1


class MetricsPageError(Exception):
    """The page could not be read."""


async def read_queue_depths(address: str, *, timeout_s: float) -> dict[str, int]:
    """Returns requests waiting per model, summed over its versions or engines.

    Args:
        address: host:port of the metrics server.
        timeout_s: Longest time the whole reading may take, seconds.

    Raises:
        MetricsPageError: The page did not come in time, or is no such page.
    """
    try:
        async with asyncio.timeout(timeout_s):
            page = await _fetch(address)
    except TimeoutError:
        raise MetricsPageError(
            f"metrics of {address} did not come within {timeout_s:g} s"
        ) from None
    except (OSError, RuntimeError) as error:  # the latter is uvloop's for a connection reset
        raise MetricsPageError(f"metrics of {address}: {error}") from None
    try:
        return parse_queue_depths(page)
    except (ValueError, ArithmeticError, LookupError) as error:
        # The parser's own errors are of many kinds; a page must not end the monitor.
        raise MetricsPageError(f"metrics of {address}: {error}") from None


def parse_queue_depths(page: bytes) -> dict[str, int]:
    """Returns requests waiting per model from the text of a metrics page.

    Raises:
        ValueError, ArithmeticError, LookupError: A line of a gauge is malformed.
    """
    # Only these lines are parsed: a whole page takes the parser half a millisecond.
    lines = [
        line for line in page.decode("utf-8", "replace").split("\n") if line.startswith(_STARTS)
    ]
    if len(lines) > _MOST_LINES:
        raise ValueError(f"{len(lines)} lines of the gauge (limit: {_MOST_LINES})")
    depths: dict[str, int] = {}
    for family in text_string_to_metric_families("\n".join(lines)):
        for sample in family.samples:
            model = sample.labels.get(_MODEL_OF_GAUGE[sample.name])
            if model is not None:
                depths[model] = depths.get(model, 0) + int(sample.value)
    if any(not 0 <= depth <= _MOST_WAITING for depth in depths.values()):
        raise ValueError(f"a queue depth is not within 0 and {_MOST_WAITING}")
    return depths


async def _fetch(address: str) -> bytes:
    # Without an HTTP library: one takes several times the CPU of a reading, and there are five of
    # them a second for each endpoint.
    host, port = parse_address(address)
    reader, writer = await asyncio.open_connection(host, port, limit=_LARGEST_PAGE_BYTES)
    try:
        request = f"GET /metrics HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode("ascii"))
        await writer.drain()
        answer = await reader.read(_LARGEST_PAGE_BYTES)
        while chunk := await reader.read(65_536):
            answer += chunk
            if len(answer) > _LARGEST_PAGE_BYTES:
                raise MetricsPageError(
                    f"metrics of {address}: larger than {_LARGEST_PAGE_BYTES} bytes"
                )
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or status[1] != b"200":
        raise MetricsPageError(f"metrics of {address}: answered {head[:64]!r}")
    return body
