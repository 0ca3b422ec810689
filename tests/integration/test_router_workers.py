"""Several router processes on one port: the kernel shares calls out, tickets close anywhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.fakes.router_process import mesh_toml, router_process
from tests.fakes.triton import FakeTriton
from tiercel.common.v1 import common_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2 as pb2
from tiercel.router_inference.v1 import router_inference_service_pb2_grpc as pb2_grpc


async def test_workers_share_a_port_and_close_each_others_tickets(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Both workers get connections; a ticket of one is closed by the other, once."""
    triton = await FakeTriton().start()
    port = free_port()
    own = 'so_reuseport = true\nticket_key = "one key for all workers"'
    toml = mesh_toml([("e0", triton.address)], router=own)
    toml = toml.replace('listen = "127.0.0.1:0"', f'listen = "127.0.0.1:{port}"', 1)
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        for folder in folders:
            stack.enter_context(router_process(folder, toml))
        stubs: dict[str, Any] = {}
        for _ in range(40):
            # A connection of its own each: the kernel decides which worker gets it.
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
            await stack.enter_async_context(channel)
            stub: Any = pb2_grpc.RouterInferenceServiceStub(channel)
            status = await stub.GetRouterStatus(pb2.GetRouterStatusRequest(), timeout=5.0)
            stubs[status.router_id] = stub
            if len(stubs) == 2:
                break
        assert len(stubs) == 2
        first, second = stubs.values()
        request = pb2.RouteRequest(task="piqa", prompt_token_count=10)
        routed = await first.Route(request, timeout=5.0)
        report = pb2.ReportOutcomeRequest(
            ticket=routed.ticket, status=common_pb2.OUTCOME_STATUS_ON_TIME, output_token_count=3
        )
        await second.ReportOutcome(report, timeout=5.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.ReportOutcome(report, timeout=5.0)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await triton.stop()
