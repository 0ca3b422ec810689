"""Where gateways reach endpoints: addresses, names of hosts, changes of the fleet."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from services.router_inference.doors.envoy.places import Names, Places
from tests.fakes.virtual_time import LoopClock
from tests.unit.services.router_inference.doors.envoy.gateway import gateway_rig, http_address
from tests.unit.services.router_inference.parts import Rig
from tests.unit.services.router_inference.scenario import scenario
from tests.waiting import until


def places_of(rig: Rig) -> Places:
    """Returns a router's places, as of now."""
    assert rig.core.picker is not None
    places = rig.core.picker.places
    places.look()
    return places


@scenario
async def test_endpoints_are_found_by_address_and_back() -> None:
    """All of them reached: no restriction is needed."""
    rig = gateway_rig(endpoint_count=2)
    places = places_of(rig)
    small, medium, *_ = rig.core.view.fleet.targets
    assert places.endpoints is None
    assert places.address(small) == http_address(0)
    assert places.at(http_address(0), medium) is medium
    assert places.subset([http_address(1), "10.0.0.1:1"]) == {"e1"}
    assert places.alike(small) == {("small", "e1")}
    moved = places.at(http_address(1), small)
    assert moved is not None
    assert moved.candidate == ("small", "e1")
    assert places.at("10.0.0.1:1", small) is None


def named(*models: dict[str, str]) -> Places:
    """Returns the places of endpoints that call their tiers so."""
    endpoints = [
        {
            "name": f"e{index}", "address": f"127.0.0.1:{9000 + index}", "tiers": tuple(each),
            "http_address": http_address(index), "models": each,
        }
        for index, each in enumerate(models)
    ]  # fmt: skip
    return places_of(gateway_rig(mesh={"endpoints": endpoints}))


@scenario
async def test_names_of_models_stand_for_a_tier_or_for_all() -> None:
    """One of several tiers, but not of all, stands for nothing."""
    places = named({"small": "s", "large": "l"}, {"large": "other"})
    assert places.models == {"s": "small", "l": "large", "other": "large"}
    assert not places.is_only_model("s")
    one = named({"small": "any"}, {"large": "any"})
    assert one.models == {"any": ""}
    assert one.is_only_model("any")
    assert not one.is_only_model("tiercel")
    several = named({"small": "x", "medium": "x", "large": "any"}, {"small": "any"})
    assert several.models == {}


@scenario
async def test_devices_of_one_server_are_no_alternatives() -> None:
    """They have one address; what fails there fails for all."""
    endpoints = [
        {
            "name": name, "address": "127.0.0.1:9000", "http_address": http_address(0),
            "tiers": ("small",), "models": {"small": f"{name}_small"},
        }
        for name in ("gpu0", "gpu1")
    ]  # fmt: skip
    rig = gateway_rig(mesh={"endpoints": endpoints})
    places = places_of(rig)
    first, second = rig.core.view.fleet.targets
    assert not places.alike(first)
    assert places.at(http_address(0), second) is second


@scenario
async def test_an_address_the_mesh_does_not_allow_gets_no_prompts() -> None:
    """Whatever the monitor says; a changed rule holds from the next look on."""
    rig = gateway_rig()
    places = places_of(rig)
    places.allow(lambda _: False)
    places.look()
    assert places.endpoints == frozenset()
    places.allow(lambda address: address == http_address(0))
    places.look()
    assert places.endpoints is None


def test_a_host_is_looked_up_and_known_by_one_address() -> None:
    """Until then it is not chosen; one that is not found stays unknown."""

    async def scene() -> None:
        names = Names(LoopClock())
        assert names.find("localhost:80") == names.find("no-such-host.invalid:80") == ""
        assert names.find("[::1]:80") == "[::1]:80"
        looking = asyncio.create_task(names.run())
        await until(lambda: names.version, "localhost is looked up")
        assert names.find("localhost:80") in ("127.0.0.1:80", "[::1]:80")
        assert names.find("no-such-host.invalid:80") == ""
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    asyncio.run(scene())


@pytest.mark.parametrize("address", ["", "nonsense"])
def test_only_addresses_are_looked_up(address: str) -> None:
    """Settings and the monitor let no other through."""
    with pytest.raises(ValueError, match="host:port"):
        Names(LoopClock()).find(address)
