"""Endpoints of the settings and of messages as the domain's `EndpointSpec`, and back."""

from __future__ import annotations

from router.fleet import EndpointProtocol, EndpointSpec
from services.common.mesh_settings import EndpointSettings
from tiercel.common.v1 import common_pb2

_PROTOCOL_TO_MESSAGE = {
    # Unset, so that the release before this one reads what it knows.
    EndpointProtocol.TRITON: common_pb2.ENDPOINT_PROTOCOL_UNSPECIFIED,
    EndpointProtocol.OPENAI: common_pb2.ENDPOINT_PROTOCOL_OPENAI,
}
PROTOCOL_OF_MESSAGE = {value: key for key, value in _PROTOCOL_TO_MESSAGE.items()} | {
    common_pb2.ENDPOINT_PROTOCOL_TRITON: EndpointProtocol.TRITON
}


def endpoint_of_settings(entry: EndpointSettings, profile: str = "") -> EndpointSpec:
    """Returns the endpoint of a `[[mesh.endpoints]]` entry, `profile` its profile's name."""
    return EndpointSpec(
        name=entry.name,
        address=entry.address,
        device=entry.device or entry.name,
        models={tier: entry.models.get(tier, tier) for tier in entry.tiers},
        profile=profile,
        metrics_address=entry.metrics_address,
        http_address=entry.http_address,
        protocol=EndpointProtocol(entry.protocol),
    )


def endpoint_of_message(message: common_pb2.Endpoint) -> EndpointSpec:
    """Returns the endpoint of a message, what is left out filled in; nothing else is checked.

    Raises:
        ValueError: It speaks what this release does not know.
    """
    protocol = PROTOCOL_OF_MESSAGE.get(message.protocol)
    if protocol is None:
        raise ValueError(f"endpoint {message.endpoint} speaks protocol {message.protocol}")
    return EndpointSpec(
        name=message.endpoint,
        address=message.address,
        device=message.device or message.endpoint,
        models={served.tier: served.model_name or served.tier for served in message.tiers},
        profile=message.profile,
        metrics_address=message.metrics_address,
        http_address=message.http_address,
        speed=message.speed or 1.0,
        protocol=protocol,
    )


def message_of_endpoint(spec: EndpointSpec) -> common_pb2.Endpoint:
    """Returns the message of an endpoint."""
    return common_pb2.Endpoint(
        endpoint=spec.name,
        address=spec.address,
        device=spec.device,
        tiers=[
            common_pb2.ServedTier(tier=tier, model_name=model)
            for tier, model in spec.models.items()
        ],
        profile=spec.profile,
        metrics_address=spec.metrics_address,
        http_address=spec.http_address,
        speed=spec.speed,
        protocol=_PROTOCOL_TO_MESSAGE[spec.protocol],
    )
