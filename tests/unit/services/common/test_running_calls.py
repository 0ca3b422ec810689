"""How many calls run at a time, and which of them a stop ends."""

from __future__ import annotations

import ast
from contextlib import ExitStack

import pytest
from tritonclient.grpc import service_pb2 as kserve

from services.common.errors import ResourceExhaustedError
from services.common.running_calls import RunningCalls
from tests.unit.deploy.manifests import ROOT
from tiercel.load_monitor.v1 import load_monitor_service_pb2
from tiercel.router_inference.v1 import router_inference_service_pb2
from tiercel.trainer.v1 import trainer_service_pb2

_SERVES_A_REQUEST = {"GenerateStream"}
_SERVES_REQUESTS = {"ModelStreamInfer"}
"""Streams that a stop ends once the requests under way have ended."""


@pytest.mark.parametrize(
    ("service", "module"),
    [
        ("load_monitor", load_monitor_service_pb2),
        ("router_inference", router_inference_service_pb2),
        ("trainer", trainer_service_pb2),
    ],
)
def test_every_stream_either_serves_a_request_or_ends_at_a_stop(
    service: str, module: object
) -> None:
    """A stream that is in neither list would hold a stop up for the whole grace time."""
    (descriptor,) = module.DESCRIPTOR.services_by_name.values()  # type: ignore[attr-defined]
    streams = {
        method.name
        for method in descriptor.methods
        if method.server_streaming or method.client_streaming
    }
    if service == "router_inference":
        (door,) = kserve.DESCRIPTOR.services_by_name.values()
        streams |= {method.name for method in door.methods if method.client_streaming}
    tree = ast.parse((ROOT / "services" / service / "app.py").read_text(encoding="utf-8"))
    watches = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "ServiceDefinition"
        for each in node.keywords
        if each.arg == "watches"
        for name in ast.literal_eval(each.value)
    }
    assert streams - _SERVES_A_REQUEST - _SERVES_REQUESTS == watches


async def test_one_address_has_a_part_of_the_room_of_strangers() -> None:
    """The room of others, and of callers that are known, stays; what ended leaves room."""
    calls = RunningCalls(160)
    with ExitStack() as first:
        for _ in range(20):
            first.enter_context(calls.watching("ipv4:1.2.3.4"))
        with pytest.raises(ResourceExhaustedError) as caught, calls.watching("ipv4:1.2.3.4"):
            pass
        assert caught.value.metadata["limit"] == "20 watches of one address"
        with calls.watching("ipv4:1.2.3.5"), calls.watching():
            assert calls.serving_count == -22
    with calls.watching("ipv4:1.2.3.4"):
        pass
    assert not calls._open_watches


def test_there_is_room_for_as_many_calls_as_allowed() -> None:
    """The call that is counted already is the last one that fits."""
    calls = RunningCalls(1)
    calls.count = 1
    calls.check_room()
