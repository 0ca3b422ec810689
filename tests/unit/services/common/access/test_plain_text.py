"""What goes to other machines goes by TLS, unless a setting says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from services.common.access.plain_text import Outgoing
from services.common.errors import InvalidArgumentError
from services.common.mesh_settings import MeshSettings
from services.common.settings import SettingsError
from services.load_monitor.convert import endpoint_from_message
from tests import certificates
from tiercel.common.v1 import common_pb2

FAR = "10.0.0.5:8000"
LINKS = ("load_monitor_address", "trainer_address")


def outgoing(
    address: str = "127.0.0.1:8000",
    *,
    protocol: str = "triton",
    is_open: bool = False,
    with_tls: bool = False,
    triton: bool = True,
    **mesh: Any,
) -> Outgoing:
    """Returns where a router may send prompts, of a mesh of one endpoint."""
    entry = {"name": "e", "address": address, "protocol": protocol, "tiers": ["small"]}
    document: dict[str, Any] = {
        "tiers": ["small"],
        "profile": "p.toml",
        "quality": "q.toml",
        "tasks": [{"name": "t", "default_deadline_s": 1.0}],
        "endpoints": [entry],
        **mesh,
    }
    if with_tls:
        tls = certificates.tls_settings("router-inference").model_dump()
        document["tls"] = {**tls, "triton": triton}
    return Outgoing("router_inference", MeshSettings.model_validate(document), is_open)


@pytest.mark.parametrize("protocol", ["triton", "openai"])
@pytest.mark.parametrize("address", [FAR, "vllm.example:8000", "0.0.0.0:8000", "[fd00::1]:8000"])
def test_an_endpoint_on_another_machine_needs_tls(protocol: str, address: str) -> None:
    """Whatever it speaks; the line names key and address, what is needed and what does without."""
    found = outgoing(address, protocol=protocol)
    (line,) = found.problems()
    assert line == (
        f"mesh.endpoints.0.address: {address} is on another machine, which needs TLS ([mesh.tls]);"
        " router_inference.insecure_open_to_network = true sends prompts and keys in plain text"
    )
    assert not found.may_be_endpoint(address)
    with pytest.raises(SettingsError, match=r"mesh\.endpoints\.0\.address"):
        found.check_endpoints()


@pytest.mark.parametrize(
    "found",
    [
        outgoing(),
        outgoing("localhost:8000"),
        outgoing("[::1]:8000"),
        outgoing(FAR, with_tls=True),
        outgoing(FAR, is_open=True),
    ],
)
def test_loopback_tls_or_leave_is_enough(found: Outgoing) -> None:
    """Each of them alone."""
    assert found.problems(LINKS) == []
    assert found.may_be_endpoint(found.mesh.endpoints[0].address)
    found.check_endpoints()


def test_tls_for_services_alone_is_not_enough() -> None:
    """`triton = false` is for endpoints on loopback."""
    (line,) = outgoing(FAR, with_tls=True, triton=False).problems()
    assert "which needs TLS (mesh.tls.triton = true);" in line
    assert outgoing(with_tls=True, triton=False).problems() == []


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("redis://10.0.0.7:6379/0", True),
        ("redis://user:hunter2@redis/0", True),
        ("redis://[fd00::1]:6379", True),
        ("rediss://user:hunter2@redis/0", False),
        ("redis://127.0.0.1:6379/0", False),
        ("redis://[::1]/0", False),
        ("redis://localhost", False),
        ("unix:///run/redis.sock", False),
        ("", False),
    ],
)
def test_redis_on_another_machine_needs_tls(url: str, is_refused: bool) -> None:
    """TLS of the mesh is none of Redis'; the line has no password."""
    for found in (outgoing(redis_url=url), outgoing(redis_url=url, with_tls=True)):
        lines = found.problems()
        assert bool(lines) is is_refused
        assert all(line.startswith("mesh.redis_url: redis://") for line in lines)
        assert "hunter2" not in "".join(lines)
    assert outgoing(redis_url=url, is_open=True).problems() == []


def test_other_services_on_another_machine_need_tls() -> None:
    """Those that the service calls; all mistakes are told together."""
    mesh: dict[str, Any] = {
        "load_monitor_address": "monitor:7411",
        "trainer_address": "trainer:7412",
    }
    keys = [line.partition(":")[0] for line in outgoing(FAR, **mesh).problems(LINKS)]
    assert keys == ["mesh.endpoints.0.address", *(f"mesh.{link}" for link in LINKS)]
    assert outgoing(**mesh).problems() == []
    assert outgoing(with_tls=True, **mesh).problems(LINKS) == []
    assert outgoing(is_open=True, **mesh).problems(LINKS) == []


def joining(found: Outgoing, **fields: Any) -> common_pb2.Endpoint:
    """Has an endpoint checked that would join."""
    message = common_pb2.Endpoint(
        endpoint="late",
        address="10.0.0.6:8000",
        tiers=[common_pb2.ServedTier(tier="small")],
        **fields,
    )
    endpoint_from_message(message, ("small",), found.refusal)
    return message


def test_an_endpoint_that_joins_needs_tls_too() -> None:
    """The error names field and value, and what is allowed in its place."""
    allowed: dict[str, Any] = {"endpoint_addresses": ["10.0.0.*:*"]}
    with pytest.raises(InvalidArgumentError) as caught:
        joining(outgoing(**allowed))
    assert caught.value.field == "endpoint.address"
    text = str(caught.value)
    for part in (
        "10.0.0.6:8000 is on another machine",
        "TLS ([mesh.tls])",
        "router_inference.insecure_open_to_network = true",
    ):
        assert part in text
    joining(outgoing(with_tls=True, **allowed))
    joining(outgoing(is_open=True, **allowed))


def test_what_carries_no_prompts_of_ours_needs_none() -> None:
    """Metrics are read in plain text, and a gateway has TLS of its own."""
    addresses: dict[str, Any] = {"metrics_address": FAR, "http_address": "10.0.0.5:8001"}
    found = outgoing(with_tls=True, endpoint_addresses=["10.0.0.*:*"])
    joining(found, **addresses)
    near = outgoing(endpoint_addresses=["10.0.0.*:*"])
    assert near.refusal("metrics_address", FAR) is None
    assert near.refusal("http_address", FAR) is None
    assert near.refusal("address", FAR) is not None
    assert near.refusal("metrics_address", "10.1.0.5:1") is not None
