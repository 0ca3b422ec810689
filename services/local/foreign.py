"""A server of the user's own, looked at from outside: which models, in which order, how fast.

What can be read is read (names, limits, what a model says of itself), what can be tried is tried
(a few answers of each model), and what is neither is a guess. Each guess is a sentence.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from router.profile import LatencyProfile, TierProfile
from services.common.access.tls import Tls
from services.common.checks import is_name
from services.common.mesh_settings import EndpointSettings
from services.common.openai.client import OpenAIClient
from services.common.tiers.client import TierClient
from services.common.tiers.errors import TierDeadlineError, TierError, TierUnavailableError
from services.common.tiers.model import TierModelConfig
from services.common.triton.client import TritonClient
from services.local import probes
from services.local.errors import CommandError, InputError
from services.local.reference import EXAMPLE_PROMPT

TRIES = 3
MOST_TRIES = 12
ENOUGH_S = 1.0
"""Time after which an answer is asked for no more often than `TRIES` times."""
LONG_TOKENS = 16
ANSWER_TIMEOUT_S = 60.0
GUESSED_MAX_BATCH = 64
GUESSED_QUALITY_STEP = 0.1
METRICS_PORT = 8002
"""Triton's own default."""
_UNDERSTOOD = ("KEY_REFUSED", "UNAUTHENTICATED", "PERMISSION_DENIED")
_NO_TRITON = "is it the gRPC address? A server that speaks OpenAI, as vLLM does, needs --openai"
_NO_OPENAI = "is it the HTTP address? A Triton is asked without --openai"
_NEEDED_INPUTS = {"text_input", "stream", "sampling_parameters"}
_NO_NAME = re.compile(r"[^a-z0-9_-]+")
_DEVICE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_BATCH = re.compile(r"[1-9][0-9]{0,5}")
_MOST_BATCH = 65_536
"""Most that a profile may say."""
_SIZE = re.compile(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([mb])(?![a-z0-9])")


@dataclass(frozen=True, slots=True)
class Timed:
    """What a few answers of a model took.

    Attributes:
        step_s: For each further token, seconds.
        rest_s: For an answer of one token, less that, seconds.
    """

    step_s: float
    rest_s: float


@dataclass(frozen=True, slots=True)
class Spoken:
    """How servers are asked that speak OpenAI.

    Attributes:
        variable: Environment variable of the key that they want; empty means none.
        api_key: The key.
    """

    variable: str = ""
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ForeignModel:
    """A model that can serve a tier.

    Attributes:
        address: Address of its server.
        config: What the server says of it.
        timed: What its answers took.
    """

    address: str
    config: TierModelConfig
    timed: Timed

    @property
    def tier(self) -> str:
        """Name of the tier: what the model says, else after the model's own; empty if it has none.

        What a server says that no name can be counts as not said.
        """
        said = self.config.tier
        return (
            said if is_name(said) else _NO_NAME.sub("-", self.config.model.lower()).strip("-")[:64]
        )

    @property
    def device(self) -> str:
        """Device that the model says it is on; empty if it says none."""
        said = self.config.parameters.get("tiercel_device", "")
        return said if _DEVICE.fullmatch(said) else ""

    @property
    def max_batch(self) -> int:
        """Most requests at once; 0 if it is not known."""
        said = self.config.parameters.get("tiercel_max_batch", "")
        return min(int(said) if _BATCH.fullmatch(said) else self.config.max_batch, _MOST_BATCH)


@dataclass(frozen=True, slots=True)
class Foreign:
    """What was found, in the form of settings.

    Attributes:
        tiers: Names, lowest quality first.
        endpoints: Where they are.
        profile: Times of the tiers.
        guesses: A sentence for each thing that is not known.
    """

    tiers: tuple[str, ...]
    endpoints: tuple[EndpointSettings, ...]
    profile: LatencyProfile
    guesses: tuple[str, ...]


@dataclass(slots=True)
class _Found:
    models: list[ForeignModel] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    guesses: list[str] = field(default_factory=list)


async def look_at(
    addresses: Sequence[str],
    tiers: Mapping[str, str],
    spoken: Spoken | None = None,
    tls: Tls | None = None,
) -> Foreign:
    """Asks the servers at some addresses.

    Args:
        addresses: Addresses of the servers.
        tiers: Model of each tier, lowest quality first; empty takes every model that can serve.
        spoken: How all of them are asked if they speak OpenAI; None: they are Tritons.
        tls: Certificates they are asked with; None means plain text.

    Raises:
        CommandError: A server does not answer, or no model there can serve a tier.
        InputError: A model of `tiers` is not there, or a server is a router.
    """
    found = _Found()
    for address in addresses:
        if spoken is None:
            await _look_at_triton(address, tiers, tls, found)
        else:
            await _look_at_openai(address, tiers, spoken, tls, found)
    loaded = {model.config.model for model in found.models}
    missing = [name for name in tiers.values() if name not in loaded]
    if missing:
        known = ", ".join(sorted(loaded)) or "none"
        raise InputError(f"--tier: no model {missing[0]!r} that can serve; there are: {known}")
    if not found.models:
        needed = ", ".join(sorted(_NEEDED_INPUTS))
        why = f": it needs the inputs {needed}, as Triton's vLLM backend has them"
        why = why if spoken is None else ""
        raise CommandError(f"no model at {', '.join(addresses)} can serve a tier{why}")
    names = _names(found.models, tiers)
    order = list(tiers) or _order(found.models, names, found.guesses)
    return Foreign(
        tiers=tuple(order),
        endpoints=_endpoints(found, names, order, spoken),
        profile=_profile(found, names, order),
        guesses=tuple(found.guesses),
    )


async def _look_at_openai(
    address: str, tiers: Mapping[str, str], spoken: Spoken, tls: Tls | None, found: _Found
) -> None:
    client = OpenAIClient(address, control_timeout_s=10.0, tls=tls, api_key=lambda: spoken.api_key)
    async with client:
        try:
            for name in await client.loaded_models():
                if not tiers or name in tiers.values():
                    config = await client.model_config(name)
                    timed = await _time(client, config)
                    found.models.append(ForeignModel(address, config, timed))
        except TierError as error:
            raise CommandError(
                f"the server at {address}: {error}{_doubt(error, _NO_OPENAI)}"
            ) from None
    if await probes.http_ok(address, "/metrics"):
        found.metrics[address] = address


async def _look_at_triton(
    address: str, tiers: Mapping[str, str], tls: Tls | None, found: _Found
) -> None:
    async with TritonClient(address, control_timeout_s=10.0, tls=tls) as client:
        try:
            loaded = await client.loaded_models()
            for name in loaded:
                if tiers and name not in tiers.values():
                    continue
                config = await client.model_config(name)
                if config.is_of_router:
                    raise InputError(f"{address}: a router of Tiercel, not a Triton")
                if config.inputs >= _NEEDED_INPUTS:
                    timed = await _time(client, config)
                    found.models.append(ForeignModel(address, config, timed))
                elif tiers:
                    needed = ", ".join(sorted(_NEEDED_INPUTS - config.inputs))
                    raise InputError(f"--tier: model {name!r} has no input {needed}")
        except TierError as error:
            raise CommandError(f"Triton at {address}: {error}{_doubt(error, _NO_TRITON)}") from None
    host = address.rpartition(":")[0]
    if await probes.http_ok(f"{host}:{METRICS_PORT}", "/metrics"):
        found.metrics[address] = f"{host}:{METRICS_PORT}"


def _doubt(error: TierError, question: str) -> str:
    """Returns what to ask oneself where a server is not reached, or speaks something else."""
    is_away = isinstance(error, TierUnavailableError | TierDeadlineError)
    return f" ({question})" if is_away and error.reason not in _UNDERSTOOD else ""


async def _time(client: TierClient, config: TierModelConfig) -> Timed:
    """Asks for a short and a longer answer some times each; the quickest counts."""
    clock = asyncio.get_running_loop().time
    prompt = EXAMPLE_PROMPT if config.kind == "reference" else "Hello"
    took_s: dict[int, float] = {}
    counts: dict[int, int] = {}
    for limit in (1, LONG_TOKENS):
        enough_s = clock() + ENOUGH_S
        for number in range(MOST_TRIES):
            start_s, count = clock(), 0
            if number >= TRIES and start_s > enough_s:
                break
            answer = client.generate(config.model, prompt, limit, timeout_s=ANSWER_TIMEOUT_S)
            async for chunk in answer:
                count += chunk.token_count
            took_s[limit] = min(took_s.get(limit, ANSWER_TIMEOUT_S), clock() - start_s)
            counts[limit] = max(counts.get(limit, 1), count)
    more = counts[LONG_TOKENS] - counts[1]
    step_s = max(1e-5, (took_s[LONG_TOKENS] - took_s[1]) / more if more > 0 else took_s[1])
    return Timed(round(step_s, 6), round(max(0.0, took_s[1] - step_s), 6))


def _names(models: Sequence[ForeignModel], tiers: Mapping[str, str]) -> dict[str, str]:
    """Returns the tier of each model by the model's name.

    Raises:
        InputError: No tier can be named after a model, or two of one device would be one tier.
    """
    given = {model: tier for tier, model in tiers.items()}
    names = {each.config.model: given.get(each.config.model) or each.tier for each in models}
    seen: dict[tuple[str, str, str], str] = {}
    for each in models:
        model, tier = each.config.model, names[each.config.model]
        other = seen.setdefault((each.address, each.device, tier), model)
        if not tier or other != model:
            why = f"{other!r} and {model!r} would be one tier" if tier else f"none is for {model!r}"
            raise InputError(f"--tier: give names for the models at {each.address}: {why}")
    return names


def _order(
    models: Sequence[ForeignModel], names: Mapping[str, str], guesses: list[str]
) -> list[str]:
    """Returns the tiers, lowest quality first: by the sizes in names, else by speed."""
    steps: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for each in models:
        tier = names[each.config.model]
        steps[tier] = min(steps.get(tier, each.timed.step_s), each.timed.step_s)
        size = _SIZE.search(each.config.model.lower())
        if size:
            sizes[tier] = float(size[1]) * (1e3 if size[2] == "b" else 1.0)
    if len(sizes) == len(steps):
        guesses.append("the order of the tiers is that of the sizes in the models' names")
        return sorted(sizes, key=sizes.__getitem__)
    guesses.append("the order of the tiers is that of their speed: the slowest counts as the best")
    return sorted(steps, key=steps.__getitem__)


def _endpoints(
    found: _Found, names: Mapping[str, str], order: Sequence[str], spoken: Spoken | None
) -> tuple[EndpointSettings, ...]:
    """Returns an endpoint for each server, or for each device where models name theirs."""
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for each in found.models:
        groups.setdefault((each.address, each.device), {})[names[each.config.model]] = (
            each.config.model
        )
    if any(not device and len(models) > 1 for (_, device), models in groups.items()):
        found.guesses.append("the models of one server share one GPU: else give each a `device`")
    return tuple(
        EndpointSettings(
            name=f"triton-{index}" if spoken is None else f"server-{index}",
            address=address,
            protocol="triton" if spoken is None else "openai",
            api_key_variable="" if spoken is None else spoken.variable,
            device=device,
            tiers=tuple(tier for tier in order if tier in models),
            models={tier: model for tier, model in models.items() if tier != model},
            metrics_address=found.metrics.get(address, ""),
        )
        for index, ((address, device), models) in enumerate(groups.items())
    )


def _profile(found: _Found, names: Mapping[str, str], order: Sequence[str]) -> LatencyProfile:
    """Returns what a few answers say of the times; those of a batch are a guess."""
    tiers: dict[str, TierProfile] = {}
    least_s = 0.0
    for tier in order:
        model = next(each for each in found.models if names[each.config.model] == tier)
        if not model.max_batch:
            found.guesses.append(f"{tier} runs up to {GUESSED_MAX_BATCH} requests at once")
        # A profile in which a larger tier is quicker would be refused.
        least_s = max(least_s, model.timed.step_s)
        tiers[tier] = TierProfile(
            step_s=least_s,
            per_sequence_s=round(least_s / GUESSED_MAX_BATCH, 9),
            per_prompt_token_s=0.0,
            max_batch=model.max_batch or GUESSED_MAX_BATCH,
            overhead_s=model.timed.rest_s,
        )
    found.guesses.append(
        "times are those of a few short answers of each model, one at a time: measure them with "
        "`tiercel calibrate`"
    )
    return LatencyProfile("first-look", "assumed", tiers, "A few answers, by tiercel init")
