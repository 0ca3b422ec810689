"""Which live tiers a measurement goes to."""

from __future__ import annotations

import dataclasses
import pathlib

from router.documents import parse_toml
from router.types import InvalidFileError
from services.common.convert import endpoint_of_message
from services.common.files import read_text
from services.common.triton.client import TritonClient
from services.common.triton.errors import TierError
from services.local.calls import call
from services.local.errors import CommandError, InputError
from services.local.target import Target
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb


@dataclasses.dataclass(frozen=True, slots=True)
class LiveTier:
    """A tier on an endpoint.

    Attributes:
        tier: Its name.
        model: Triton model that serves it.
        address: gRPC address of the endpoint.
        endpoint: Name of the endpoint.
        device: Device whose time it shares.
        kind: ``reference``, ``paced`` or ``production``; empty if the model does not say.
        max_batch: Most sequences it runs at once; 0 if the model does not say.
        max_prompt_tokens: Most prompt tokens it admits at once; 0 if the model does not say.
    """

    tier: str
    model: str
    address: str
    endpoint: str
    device: str
    kind: str = ""
    max_batch: int = 0
    max_prompt_tokens: int = 0


def tiers_of_mesh(target: Target) -> list[LiveTier]:
    """Asks the load monitor for the endpoints of a running mesh.

    Raises:
        CommandError: The monitor does not answer or knows no endpoint.
        InputError: The mesh has no monitor.
    """
    address = target.need("load_monitor")
    reply = call("load monitor", address, "GetSystemState", monitor_pb.GetSystemStateRequest())
    found: dict[str, LiveTier] = {}
    for state in reply.state.endpoints:
        spec = endpoint_of_message(state.endpoint)
        for tier, model in spec.models.items():
            live = LiveTier(tier, model, spec.address, spec.name, spec.device)
            found.setdefault(tier, live)
    if not found:
        raise CommandError("the mesh has no endpoint")
    order = _order_of(target)
    return sorted(found.values(), key=lambda each: order.get(each.tier, len(order)))


def _order_of(target: Target) -> dict[str, int]:
    """Rank of each tier by the mesh's settings; empty where they are not at hand."""
    if target.manifest is None:
        return {}
    try:
        path = pathlib.Path(target.manifest.config)
        names = parse_toml(read_text(path), str(path))["mesh"]["tiers"]
    except (OSError, UnicodeDecodeError, LookupError, TypeError, InvalidFileError) as error:
        raise InputError(f"{target.manifest.config}: cannot be read: {error}") from None
    return {name: rank for rank, name in enumerate(names)}


async def with_facts(tier: LiveTier, client: TritonClient) -> LiveTier:
    """Adds what the model's own configuration says.

    Raises:
        CommandError: The endpoint does not answer or does not have the model.
    """
    try:
        config = await client.model_config(tier.model)
    except TierError as error:
        raise CommandError(f"{tier.tier} at {tier.address}: {error}") from None

    def number(key: str) -> int:
        text = config.parameters.get(key, "")
        return int(text) if text.isdigit() else 0

    return dataclasses.replace(
        tier,
        kind=config.kind,
        max_batch=number("tiercel_max_batch"),
        max_prompt_tokens=number("tiercel_max_prefill") * number("tiercel_max_prompt_tokens"),
    )
