"""Channels within the mesh go straight to their address."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from router.dqn.snapshot import MAX_SNAPSHOT_BYTES
from services.common.channels import open_blocking_channel, open_channel
from services.common.tiers.errors import BAD_ANSWER, TierUnavailableError
from services.common.triton.errors import error_of_status
from services.router_inference.reconnect import CHANNEL_OPTIONS
from tests.fakes.slow_listener import slow_listener
from tests.waiting import LIMIT_S
from tiercel.channels import CHANNEL_OPTIONS as CLIENT_OPTIONS

SERVICES = Path(__file__).parents[4] / "services"


PROXIES = {
    "http_proxy": {"http_proxy": "http://127.0.0.1:1"},
    "https_proxy": {"https_proxy": "http://127.0.0.1:1"},
    "grpc_proxy": {"grpc_proxy": "http://127.0.0.1:1"},
    "for addresses": {
        "GRPC_ADDRESS_HTTP_PROXY": "127.0.0.1:1",
        "GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES": "127.0.0.0/8,::1/128",
    },
}


@pytest.fixture(params=PROXIES)
def address(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server, while the environment names a proxy that is none."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in PROXIES[request.param].items():
        monkeypatch.setenv(name, value)
    servicer = health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{number}"
    server.stop(grace=0).wait(timeout=LIMIT_S)


def test_a_command_takes_the_longest_answer_there_is() -> None:
    """A trainer answers with a whole snapshot, which may be longer than gRPC takes by itself."""
    answer = b"x" * MAX_SNAPSHOT_BYTES
    handler: Any = grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer)
    server = grpc.server(
        ThreadPoolExecutor(max_workers=1), options=[("grpc.max_send_message_length", -1)]
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", {"Get": handler})])
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with open_blocking_channel(f"127.0.0.1:{number}") as channel:
        get: Any = channel.unary_unary("/s/Get")
        assert get(b"", timeout=LIMIT_S) == answer
    server.stop(grace=0).wait(timeout=LIMIT_S)


async def test_calls_do_not_go_through_a_proxy(address: str) -> None:
    """Both kinds of channel reach the server itself."""
    request = health_pb2.HealthCheckRequest()
    async with open_channel(address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with open_blocking_channel(address) as blocking:
        reply = health_pb2_grpc.HealthStub(blocking).Check(request, timeout=LIMIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("options", [(), CHANNEL_OPTIONS, CLIENT_OPTIONS])
async def test_a_server_that_is_slow_to_greet_is_reached(
    address: str, options: tuple[tuple[str, int], ...]
) -> None:
    """Busy cores delay a connection; they do not make its endpoint unreachable."""
    request = health_pb2.HealthCheckRequest()
    async with slow_listener(address, delay_s=0.4) as slow, open_channel(slow, options) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=LIMIT_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING


def test_no_other_module_opens_a_channel() -> None:
    """A channel that is opened past this room would use the proxy again."""
    rooms = {SERVICES / "common/channels.py", SERVICES / "client/tiercel/channels.py"}
    opening = {path for path in SERVICES.rglob("*.py") if "secure_channel(" in path.read_text()}
    # The benchmark compares with bare channels.
    ours = {path for path in opening if "bench" not in path.parts}
    assert all(
        "options=STRAIGHT" in path.read_text() or "*STRAIGHT" in path.read_text()
        for path in opening - ours
    )
    assert {path for path in ours if not path.name.endswith("_pb2_grpc.py")} == rooms


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_answers_that_are_packed_are_not_unpacked(algorithm: grpc.Compression) -> None:
    """A server learns that nobody unpacks; one that packs all the same is not understood."""

    async def answer(request: bytes, context: Any) -> bytes:
        return bytes(1_000_000)

    handler: Any = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server(compression=algorithm)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    number = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{number}") as channel:
            method: Any = channel.unary_unary("/s/m")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"", timeout=LIMIT_S)
    finally:
        await server.stop(None)
    detail = caught.value.details()
    assert "Compression algorithm not supported" in (detail or "")
    found = error_of_status(caught.value.code(), detail or "")
    assert isinstance(found, TierUnavailableError)
    assert found.reason == BAD_ANSWER
