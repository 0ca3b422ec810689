"""Clients that balance by DNS find servers that were added while they called."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio

from tests.fakes.dns_server import DnsServer, dns_server
from tests.integration.test_grpc_server import Served, serving
from tests.waiting import LIMIT_S, until
from tiercel.trainer.v1 import trainer_service_pb2 as pb
from tiercel.trainer.v1 import trainer_service_pb2_grpc as pb_grpc

_AGE_S = 1.0
_BATCH = 20
# What a busy machine may take beside: a client that looks at no DNS takes for ever.
_PATIENCE_S = 10.0
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_OPTIONS = (
    ("grpc.service_config", _ROUND_ROBIN),
    # The library asks DNS at most twice a minute; a test has no such time.
    ("grpc.dns_min_time_between_resolutions_ms", 100),
)


def channel_by_name(dns: DnsServer, port: int) -> grpc.aio.Channel:
    """Returns a channel that asks `dns` for its addresses and takes turns among them."""
    target = f"dns://127.0.0.1:{dns.port}/router.mesh.test:{port}"
    return grpc.aio.insecure_channel(target, options=_OPTIONS)


async def call_for(stub: Any, duration_s: float) -> None:
    """Calls one after the other; raises if a call fails."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        await stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)


async def test_a_server_added_under_load_gets_its_share_within_two_ages() -> None:
    """No call fails, neither short ones nor one that is older than its connection."""
    async with dns_server() as dns, serving("127.0.0.2:0", max_connection_age_s=_AGE_S) as first:
        port = first.server.address.port
        dns.addresses = ["127.0.0.2"]
        async with channel_by_name(dns, port) as channel:
            stub = pb_grpc.TrainerServiceStub(channel)
            long_call = stub.RollbackPolicy(pb.RollbackPolicyRequest(), timeout=LIMIT_S)
            await call_for(stub, 0.2)
            async with serving(f"127.0.0.3:{port}", max_connection_age_s=_AGE_S) as second:
                dns.addresses = ["127.0.0.2", "127.0.0.3"]

                async def are_shared() -> bool:
                    before = handled(first), handled(second)
                    for _ in range(_BATCH):
                        await stub.ListPolicies(pb.ListPoliciesRequest(), timeout=LIMIT_S)
                    shares = handled(first) - before[0], handled(second) - before[1]
                    return min(shares) > 0.3 * _BATCH

                await until(are_shared, "shares are even", 2.0 * _AGE_S + _PATIENCE_S)
                first.servicer.may_end.set()
                assert (await long_call).activation == 3


def handled(served: Served) -> float:
    """Returns how many short calls a server answered."""
    return served.handled("ListPolicies", "OK", "")


async def test_no_call_of_a_burst_fails_though_connections_end_all_the_time() -> None:
    """Calls that begin at the very moment at which their connection ends are among them."""
    async with serving(max_connection_age_s=0.5) as served:
        calls: list[Any] = []
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            end_s = time.monotonic() + 2.0
            while time.monotonic() < end_s:
                for _ in range(10):
                    request = pb.ListPoliciesRequest()
                    call = served.stub.ListPolicies(request, timeout=LIMIT_S)
                    calls.append(group.create_task(_answered(call)))
                await asyncio.sleep(0.02)
        assert handled(served) == len(calls)


async def _answered(call: Any) -> None:
    """Waits for an answer; a task, since a call is awaitable and no coroutine."""
    await call
