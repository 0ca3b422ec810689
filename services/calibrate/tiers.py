"""Which live tiers a measurement goes to."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence

from router.fleet import EndpointProtocol, EndpointSpec
from services.common.access.tls import Tls
from services.common.convert import endpoint_of_message, endpoint_of_settings
from services.common.mesh_settings import MeshSettings
from services.common.openai.client import OpenAIClient
from services.common.tiers.errors import TierError
from services.common.triton.client import TritonClient
from services.local.calls import call
from services.local.errors import CommandError
from tiercel.load_monitor.v1 import load_monitor_service_pb2 as monitor_pb

EndpointClient = TritonClient | OpenAIClient
REFERENCE = "reference"
_MOST_DIGITS = 9


@dataclasses.dataclass(frozen=True, slots=True)
class LiveTier:
    """A tier on an endpoint.

    Attributes:
        tier: Its name.
        model: The server's own name of the model that serves it.
        address: Address of the endpoint.
        endpoint: Name of the endpoint.
        device: Device whose time it shares.
        kind: ``reference``, ``paced`` or ``production``; empty if the model does not say.
        max_batch: Most sequences it runs at once; 0 if the model does not say.
        max_prompt_tokens: Most prompt tokens it admits at once; 0 if the model does not say.
        counts_prompts: Whether its model tells how many tokens a prompt has.
        protocol: What the endpoint speaks.
        api_key: What the endpoint wants to be shown; empty means nothing.
        tls: Certificates it is called with; None means plain text.
    """

    tier: str
    model: str
    address: str
    endpoint: str
    device: str
    kind: str = ""
    max_batch: int = 0
    max_prompt_tokens: int = 0
    counts_prompts: bool = False
    protocol: EndpointProtocol = EndpointProtocol.TRITON
    api_key: str = dataclasses.field(default="", repr=False)
    tls: Tls | None = dataclasses.field(default=None, repr=False)


def tiers_of_monitor(address: str) -> list[LiveTier]:
    """Asks a load monitor for the tiers of its endpoints.

    Raises:
        CommandError: It does not answer or knows no endpoint.
    """
    reply = call("load monitor", address, "GetSystemState", monitor_pb.GetSystemStateRequest())
    specs = [endpoint_of_message(state.endpoint) for state in reply.state.endpoints]
    return _first_of_each(specs)


def tiers_of_settings(mesh: MeshSettings) -> list[LiveTier]:
    """Returns the tiers of the endpoints that the settings name.

    Raises:
        CommandError: They name none.
    """
    return _first_of_each([endpoint_of_settings(entry) for entry in mesh.endpoints])


def _first_of_each(specs: Sequence[EndpointSpec]) -> list[LiveTier]:
    found: dict[str, LiveTier] = {}
    for spec in specs:
        for tier, model in spec.models.items():
            live = LiveTier(
                tier, model, spec.address, spec.name, spec.device, protocol=spec.protocol
            )
            found.setdefault(tier, live)
    if not found:
        raise CommandError("the mesh has no endpoint")
    return list(found.values())


def are_reference(tiers: Sequence[LiveTier]) -> bool:
    """Returns whether all of them are this project's own models."""
    return all(each.kind == REFERENCE for each in tiers)


def measured_name(tiers: Sequence[LiveTier]) -> str:
    """Returns the name of what is measured: its models, or ``reference`` for our own."""
    return REFERENCE if are_reference(tiers) else "+".join(each.model for each in tiers)


@contextlib.asynccontextmanager
async def clients_of(tiers: Sequence[LiveTier]) -> AsyncIterator[dict[str, EndpointClient]]:
    """Opens a client for the address of every tier."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            address: await stack.enter_async_context(_client_of(tier))
            for address, tier in {each.address: each for each in tiers}.items()
        }


def _client_of(tier: LiveTier) -> EndpointClient:
    if tier.protocol is EndpointProtocol.OPENAI:
        return OpenAIClient(
            tier.address, most_idle_connections=64, tls=tier.tls, api_key=lambda: tier.api_key
        )
    return TritonClient(tier.address, tls=tier.tls)


async def with_facts(tiers: Sequence[LiveTier]) -> list[LiveTier]:
    """Adds what the models' own configurations say.

    Raises:
        CommandError: An endpoint does not answer or does not have the model.
    """
    async with clients_of(tiers) as clients:
        return [await _with_facts(each, clients[each.address]) for each in tiers]


async def _with_facts(tier: LiveTier, client: EndpointClient) -> LiveTier:
    try:
        config = await client.model_config(tier.model)
    except TierError as error:
        raise CommandError(f"{tier.tier} at {tier.address}: {error}") from None

    def number(key: str) -> int:
        text = config.parameters.get(key, "")
        is_number = text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS
        return int(text) if is_number else 0

    return dataclasses.replace(
        tier,
        kind=config.kind,
        max_batch=number("tiercel_max_batch") or config.max_batch,
        max_prompt_tokens=number("tiercel_max_prompt_tokens_per_step")
        or number("tiercel_max_prefill") * number("tiercel_max_prompt_tokens"),
        counts_prompts=config.counts_prompts,
    )
