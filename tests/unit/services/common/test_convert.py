"""An endpoint of the settings or of a message becomes the domain's, and a message again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from router.fleet import EndpointProtocol, EndpointSpec
from services.common.convert import endpoint_of_message, endpoint_of_settings, message_of_endpoint
from services.common.mesh_settings import EndpointSettings
from tiercel.common.v1 import common_pb2

SPEC = EndpointSpec("e", "h:1", "gpu0", {"large": "opt", "small": "small"}, "a100", "h:2", 0.9)


def test_an_endpoint_survives_the_wire() -> None:
    """Every field comes back, tiers in their order."""
    found = endpoint_of_message(message_of_endpoint(SPEC))
    assert found == SPEC
    openai = replace(SPEC, protocol=EndpointProtocol.OPENAI)
    assert endpoint_of_message(message_of_endpoint(openai)) == openai
    assert list(found.models) == ["large", "small"]


def test_what_a_message_leaves_out_is_filled_in() -> None:
    """The device is named like the endpoint, a model like its tier, and the speed is 1."""
    message = common_pb2.Endpoint(
        endpoint="e", address="h:1", tiers=[common_pb2.ServedTier(tier="small")]
    )
    assert endpoint_of_message(message) == EndpointSpec("e", "h:1", "e", {"small": "small"})


def test_an_entry_of_the_settings_names_models_only_where_they_differ() -> None:
    """A tier that is not listed under `models` has a model of its own name."""
    entry = EndpointSettings(
        name="e", address="h:1", tiers=("large", "small"), models={"large": "opt"}
    )
    assert endpoint_of_settings(entry, "a100") == EndpointSpec(
        "e", "h:1", "e", {"large": "opt", "small": "small"}, "a100"
    )


def test_an_endpoint_of_a_protocol_to_come_is_refused() -> None:
    """Nothing is sent to it in words that it does not speak."""
    message = common_pb2.Endpoint(endpoint="e", address="h:1")
    message.protocol = 77  # type: ignore[assignment]
    with pytest.raises(ValueError, match="endpoint e speaks protocol 77"):
        endpoint_of_message(message)
