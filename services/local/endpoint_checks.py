"""What the doctor finds at an endpoint: he asks it for what the mesh will ask it for."""

from __future__ import annotations

import contextlib

from services.common.access.tls import Tls
from services.common.mesh_settings import EndpointSettings
from services.common.openai.client import OpenAIClient
from services.common.tiers.errors import TierError
from services.common.triton.client import TritonClient
from services.local import probes
from services.local.findings import BAD, GOOD, ODD, Finding

_TIMEOUT_S = 3.0
_PAGE_S = 10.0
_ANSWER_S = 15.0


async def examine_endpoint(
    entry: EndpointSettings, tls: Tls | None, api_key: str = ""
) -> list[Finding]:
    """Asks an endpoint.

    Args:
        entry: The endpoint.
        tls: The mesh's certificates; None means plain text.
        api_key: What it wants to be shown; empty means nothing.
    """
    check = _openai if entry.protocol == "openai" else _triton
    is_there, found = await check(entry, tls.for_triton if tls else None, api_key)
    if is_there:
        found += await _pages(entry, is_plain=tls is None)
    good = Finding(_subject(entry), GOOD, f"serves {', '.join(entry.tiers)} at {entry.address}")
    return found or [good]


def _subject(entry: EndpointSettings) -> str:
    return f"endpoint {entry.name}"


async def _triton(entry: EndpointSettings, tls: Tls | None, _: str) -> tuple[bool, list[Finding]]:
    """Returns whether a Triton answers, and what is wrong with it."""
    subject = _subject(entry)
    async with TritonClient(entry.address, control_timeout_s=_TIMEOUT_S, tls=tls) as client:
        if not await client.is_live():
            advice = "start Triton there, or mend the address; with TLS: mesh.tls.triton"
            text = f"no Triton answers at {entry.address}"
            return False, [Finding(subject, BAD, text, advice)]
        found = []
        for tier in entry.tiers:
            found += await _model(client, subject, tier, entry.models.get(tier, tier))
    return True, found


async def _model(client: TritonClient, subject: str, tier: str, model: str) -> list[Finding]:
    try:
        config = await client.model_config(model)
    except TierError:
        loaded = ""
        with contextlib.suppress(TierError):
            loaded = ", ".join(await client.loaded_models()) or "none"
        return [_missing(subject, tier, model, loaded)]
    if config.is_of_router:
        text, advice = "is a router of Tiercel, not a Triton", "give this endpoint its Triton"
        return [Finding(subject, BAD, text, advice)]
    if not await client.is_ready(model):
        return [Finding(subject, BAD, f"tier {tier}: {model} is not ready", "see Triton's log")]
    if config.tier not in ("", tier):
        text = f"tier {tier}: {model} says that it is {config.tier}"
        return [Finding(subject, ODD, text, "look at models: two of them may be swapped")]
    return []


def _missing(subject: str, tier: str, model: str, loaded: str) -> Finding:
    advice = f"name the model of {tier} in models of this endpoint"
    advice += f"; loaded: {loaded}" if loaded else ""
    return Finding(subject, BAD, f"tier {tier}: there is no model {model!r}", advice)


async def _openai(
    entry: EndpointSettings, tls: Tls | None, api_key: str
) -> tuple[bool, list[Finding]]:
    """Returns whether a server answers, and what is wrong with it: each model gives one token."""
    subject = _subject(entry)
    async with OpenAIClient(
        entry.address, control_timeout_s=_TIMEOUT_S, tls=tls, api_key=lambda: api_key
    ) as client:
        try:
            await client.statistics()
            loaded = await client.loaded_models()
        except TierError as error:
            advice = "start it, or mend address, protocol or api_key_...; with TLS: mesh.tls.triton"
            text = f"no server that speaks OpenAI at {entry.address}: {error}"
            return False, [Finding(subject, BAD, text, advice)]
        found = []
        for tier in entry.tiers:
            model = entry.models.get(tier, tier)
            if model not in loaded:
                found.append(_missing(subject, tier, model, ", ".join(loaded) or "none"))
                continue
            try:
                async for _ in client.generate(model, "Hello", 1, timeout_s=_ANSWER_S):
                    pass
            except TierError as error:
                text = f"tier {tier}: {model} does not answer as routers ask it: {error}"
                found.append(Finding(subject, BAD, text, "see its log, and docs/doors.md"))
    return True, found


async def _pages(entry: EndpointSettings, *, is_plain: bool) -> list[Finding]:
    """Returns what is wrong with the pages that it should have."""
    subject, found = _subject(entry), []
    is_triton = entry.protocol == "triton"
    metrics = entry.metrics_address
    if metrics and not await probes.http_ok(metrics, "/metrics", timeout_s=_PAGE_S):
        advice = "start Triton with --allow-metrics, or" if is_triton else "mend it, or"
        found.append(
            Finding(
                subject, ODD, f"no metrics at {entry.metrics_address}: the monitor sees no queues",
                f"{advice} take metrics_address out",
            )
        )  # fmt: skip
    # With TLS a proxy stands there that asks for a gateway's certificate.
    http = entry.http_address if is_plain and is_triton else ""
    if http and not await probes.http_ok(http, "/v2/health/live", timeout_s=_PAGE_S):
        found.append(
            Finding(
                subject, BAD, f"no Triton answers at {http}: Envoy cannot reach it",
                "start Triton with --allow-http, or mend http_address",
            )
        )  # fmt: skip
    return found
