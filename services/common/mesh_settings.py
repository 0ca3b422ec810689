"""The `[mesh]` section every service reads: tiers, tasks, endpoints, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from router.catalog import Catalog, QualityTable, parse_quality
from router.profile import LatencyProfile, parse_profile
from router.types import (
    LONGEST_TOKEN_INTERVAL_S,
    TOKEN_INTERVAL_S,
    InvalidFileError,
    RewardKind,
    SloKind,
    Task,
)
from services.common.access.access import AccessSettings
from services.common.access.tls import TlsSettings
from services.common.addresses import (
    Address,
    AddressPattern,
    OptionalAddress,
    RedisUrl,
    matches,
)
from services.common.files import read_text
from services.common.prompt_sizes import DEFAULT_PROMPT_BYTES, MOST_PROMPT_BYTES
from services.common.settings import (
    OptionalRelativePath,
    Problem,
    RelativePath,
    SettingsError,
    SettingsModel,
)

Parsed = TypeVar("Parsed")

MOST_TARGET = 0.9999
"""Highest target of a task."""
LOWEST_LIMIT_TOKENS = 1
HIGHEST_LIMIT_TOKENS = 65_536
_LOOPBACK = ("127.0.0.1:*", "localhost:*", "[::1]:*")

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
"""A name in the mesh: 1 to 64 characters of [a-z0-9_-]."""


class TaskSettings(SettingsModel):
    """One `[[mesh.tasks]]` entry."""

    name: Name
    """Unique name."""
    default_deadline_s: float = Field(gt=0.0, le=3600.0)
    """Deadline of requests that bring none, in seconds."""
    slo_kind: Literal["complete_answer", "first_token", "per_token"] = "complete_answer"
    """What the deadline is measured against; per token, it is that of the first one."""
    token_interval_s: float = Field(default=TOKEN_INTERVAL_S, gt=0.0, le=LONGEST_TOKEN_INTERVAL_S)
    """Time between the due times of two tokens in seconds, where the deadline is per token."""
    reward: Literal["hard", "soft"] = "hard"
    """Whether a late answer is worth nothing, or its quality decayed by its lateness."""
    soft_decay_s: float = Field(default=0.2, gt=0.0, le=3600.0)
    """E-folding time of the reward's decay with lateness in seconds; soft only."""
    default_max_output_tokens: int = Field(
        default=16, ge=LOWEST_LIMIT_TOKENS, le=HIGHEST_LIMIT_TOKENS
    )
    """Limit of output tokens of requests that bring none."""
    expected_output_tokens: float = Field(default=8.0, ge=1.0, le=HIGHEST_LIMIT_TOKENS)
    """Prior of the output-length predictor, tokens."""
    target: float = Field(default=0.99, ge=0.0, le=MOST_TARGET)
    """Share of hard deadlines that is to be met, whatever that costs in quality; 0 means none."""


class EndpointSettings(SettingsModel):
    """One `[[mesh.endpoints]]` entry."""

    name: Name
    """Unique name."""
    address: Address
    """Address of the server: gRPC of a Triton, HTTP of one that speaks OpenAI."""
    protocol: Literal["triton", "openai"] = "triton"
    """What it speaks: KServe v2 as Triton's vLLM backend has it, or OpenAI's completions."""
    device: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]{0,64}$")
    """Device whose time its tiers share; empty means one named like the endpoint."""
    tiers: tuple[Name, ...] = Field(min_length=1)
    """Tiers it serves."""
    models: dict[str, str] = Field(default_factory=dict)
    """The server's model name per tier; a tier that is not listed has a model of its own name."""
    profile: OptionalRelativePath = ""
    """Latency profile of its device; empty means the mesh's."""
    metrics_address: OptionalAddress = ""
    """HTTP address of its Prometheus metrics; empty means it is not scraped."""
    http_address: OptionalAddress = ""
    """HTTP address of the same server, where Envoy sends requests; empty means it gets none."""
    api_key_variable: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,127})?$")
    """Environment variable that holds the key it wants; `openai` only; empty means none."""
    api_key_file: OptionalRelativePath = ""
    """File that holds the key it wants; `openai` only; empty means none."""


class MeshSettings(SettingsModel):
    """The `[mesh]` section."""

    name: Name = "mesh"
    """Name of the mesh, shown in telemetry."""
    tiers: tuple[Name, ...] = Field(min_length=1)
    """Names of the tiers, lowest quality first."""
    profile: RelativePath
    """Default latency profile."""
    quality: RelativePath
    """Measured quality table."""
    bytes_per_token: float = Field(default=4.0, gt=0.0, le=64.0)
    """Bytes of prompt per token, for the estimate of prompt tokens (reference tiers: 1.0)."""
    max_prompt_bytes: int = Field(default=DEFAULT_PROMPT_BYTES, ge=1, le=MOST_PROMPT_BYTES)
    """Longest prompt at every door, bytes of UTF-8; sizes of messages and bodies follow it."""
    redis_url: RedisUrl = ""
    """Redis; empty means the mesh runs without (nothing outlives a process)."""
    load_monitor_address: OptionalAddress = ""
    """Load monitor; empty means none."""
    trainer_address: OptionalAddress = ""
    """Trainer; empty means none."""
    tls: TlsSettings = Field(default_factory=TlsSettings)
    """Certificates; see `[mesh.tls]`."""
    access: AccessSettings = Field(default_factory=AccessSettings)
    """Who may call; see `[mesh.access]`."""
    tasks: tuple[TaskSettings, ...] = Field(min_length=1)
    """Classes of requests."""
    endpoints: tuple[EndpointSettings, ...] = ()
    """Endpoints known at start; more may join while the mesh runs."""
    endpoint_addresses: tuple[AddressPattern, ...] = Field(default=_LOOPBACK, max_length=100)
    """Addresses that endpoints may join with, beside those of `endpoints`; `*` stands for any text,
    in the last part of a name for none with a dot.

    Prompts are sent to no other address, and no other is probed or scraped.
    """

    def may_be_endpoint(self, address: str) -> bool:
        """Returns whether an endpoint may have an address (or one its metrics)."""
        return any(
            address in (entry.address, entry.metrics_address, entry.http_address)
            for entry in self.endpoints
        ) or any(matches(pattern, address) for pattern in self.endpoint_addresses)

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields duplicate names, unknown tiers and missing endpoints."""
        tiers = [tier for tier in _list(raw.get("tiers")) if isinstance(tier, str)]
        yield from duplicates(("tiers",), tiers)
        for kind in ("tasks", "endpoints"):
            names = [
                entry.get("name") if isinstance(entry, dict) else None
                for entry in _list(raw.get(kind))
            ]
            yield from duplicates((kind,), names, "name")
        inner: dict[str, type[SettingsModel]] = {"tls": TlsSettings, "access": AccessSettings}
        for name, section in inner.items():
            below = raw.get(name)
            for found in section.cross_problems(below, base_dir) if isinstance(below, dict) else ():
                yield replace(found, path=(name, *found.path))
        if not raw.get("endpoints") and not raw.get("load_monitor_address"):
            yield Problem(
                ("endpoints",),
                "needs at least one endpoint, or load_monitor_address",
                raw.get("endpoints"),
            )
        for index, entry in enumerate(_list(raw.get("endpoints"))):
            if isinstance(entry, dict):
                yield from _endpoint_problems(index, entry, tiers)


def _endpoint_problems(index: int, entry: dict[str, Any], tiers: list[str]) -> Iterator[Problem]:
    served = _list(entry.get("tiers"))
    yield from duplicates(("endpoints", index, "tiers"), served)
    for tier in served:
        if isinstance(tier, str) and tier not in tiers:
            known = ", ".join(tiers) or "none"
            yield Problem(
                ("endpoints", index, "tiers"), f"unknown tier; mesh.tiers has {known}", tier
            )
    models = entry.get("models")
    for tier, model in models.items() if isinstance(models, dict) else ():
        if tier not in served:
            yield Problem(("endpoints", index, "models", tier), "is no tier of this endpoint", tier)
        if model == "":
            yield Problem(("endpoints", index, "models", tier), "must not be empty", model)
    keys = [name for name in ("api_key_variable", "api_key_file") if entry.get(name)]
    if keys and entry.get("protocol") != "openai":
        yield Problem(("endpoints", index, keys[0]), 'goes with protocol = "openai" alone', "")
    if len(keys) > 1:
        yield Problem(("endpoints", index, keys[1]), f"{keys[0]} is given too; give one", "")


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def duplicates(
    path: tuple[str | int, ...], names: list[Any], key: str | None = None
) -> Iterator[Problem]:
    """Yields the names that a list has twice; `key` is where in an entry the name stands."""
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, str):
            continue
        if name in seen:
            at = (*path, index) if key is None else (*path, index, key)
            yield Problem(at, "is used twice", name)
        seen.add(name)


@dataclass(frozen=True, slots=True)
class MeshFiles:
    """What the files named in `[mesh]` hold.

    Args:
        catalog: Tiers, tasks and the quality of each pair.
        quality: The quality table as read.
        profile: The mesh's default latency profile.
        endpoint_profiles: Profile per endpoint name, the default where it names none.
    """

    catalog: Catalog
    quality: QualityTable
    profile: LatencyProfile
    endpoint_profiles: Mapping[str, LatencyProfile]


def load_mesh_files(mesh: MeshSettings) -> MeshFiles:
    """Reads the profile and quality files of a mesh.

    Raises:
        SettingsError: A file is missing or wrong; mistakes of all files are listed together.
    """
    problems: list[str] = []

    def parse_tiers(text: str, origin: str) -> LatencyProfile:
        return parse_profile(text, origin, mesh.tiers)

    profile = _read(mesh.profile, "mesh.profile", parse_tiers, problems)
    table = _read(mesh.quality, "mesh.quality", parse_quality, problems)
    by_path: dict[str, LatencyProfile | None] = {"": profile}
    for index, endpoint in enumerate(mesh.endpoints):
        if endpoint.profile not in by_path:
            key = f"mesh.endpoints.{index}.profile"
            by_path[endpoint.profile] = _read(Path(endpoint.profile), key, parse_profile, problems)
        found = by_path[endpoint.profile]
        if endpoint.profile and found is not None:
            problems.extend(
                f"{endpoint.profile}: tiers.{tier}: missing; {endpoint.name} serves it"
                for tier in endpoint.tiers
                if tier not in found.tiers
            )
    catalog: Catalog | None = None
    if table is not None:
        try:
            catalog = Catalog.build(mesh.tiers, tuple(_task(task) for task in mesh.tasks), table)
        except InvalidFileError as error:
            problems.extend(f"{mesh.quality}: {problem}" for problem in error.problems)
    if problems or catalog is None or table is None or profile is None:
        raise SettingsError(list(dict.fromkeys(problems)))
    return MeshFiles(
        catalog=catalog,
        quality=table,
        profile=profile,
        endpoint_profiles={e.name: by_path[e.profile] or profile for e in mesh.endpoints},
    )


def placement(mesh: MeshSettings) -> tuple[tuple[str, ...], ...]:
    """Returns the tiers placed on each device; without endpoints one device with every tier."""
    devices: dict[str, set[str]] = {}
    for endpoint in mesh.endpoints:
        devices.setdefault(endpoint.device or endpoint.name, set()).update(endpoint.tiers)
    placed = [tuple(t for t in mesh.tiers if t in tiers) for tiers in devices.values()]
    return tuple(placed) or (tuple(mesh.tiers),)


def endpoint_profile_names(mesh: MeshSettings) -> dict[str, str]:
    """Returns the profile's name for every endpoint that has a profile file of its own.

    Raises:
        SettingsError: A file is missing or wrong; mistakes of all files are listed together.
    """
    problems: list[str] = []
    names: dict[str, str] = {}
    for index, endpoint in enumerate(mesh.endpoints):
        if endpoint.profile:
            key = f"mesh.endpoints.{index}.profile"
            profile = _read(Path(endpoint.profile), key, parse_profile, problems)
            if profile is not None:
                names[endpoint.name] = profile.name
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return names


def _task(settings: TaskSettings) -> Task:
    return Task(
        name=settings.name,
        default_deadline_s=settings.default_deadline_s,
        slo_kind=SloKind(settings.slo_kind),
        reward_kind=RewardKind(settings.reward),
        soft_decay_s=settings.soft_decay_s,
        default_max_output_tokens=settings.default_max_output_tokens,
        expected_output_tokens=settings.expected_output_tokens,
        target=settings.target,
        token_interval_s=settings.token_interval_s,
    )


def _read(
    path: Path, key: str, parse: Callable[[str, str], Parsed], problems: list[str]
) -> Parsed | None:
    try:
        return parse(read_text(path), str(path))
    except OSError as error:
        problems.append(f"{path}: {key}: cannot be read: {error.strerror or error}")
    except UnicodeDecodeError:
        problems.append(f"{path}: {key}: is not valid UTF-8")
    except InvalidFileError as error:
        problems.extend(f"{path}: {problem}" for problem in error.problems)
    return None
