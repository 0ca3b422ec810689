"""Settings of openai-door: the `[openai_door]` section beside `[mesh]` and `[log]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from services.common.addresses import Address, ListenAddress, OptionalListenAddress
from services.common.log import LogSettings
from services.common.mesh_settings import MeshSettings
from services.common.prompt_sizes import body_bytes
from services.common.service_settings import ServiceSettings
from services.common.settings import OptionalRelativePath, Problem, SettingsModel
from services.openai_door.chat_template import CONTENT, ROLES


class ChatTemplateSettings(SettingsModel):
    """The `[openai_door.own_template]` section: how a conversation becomes a prompt."""

    begin: str = ""
    """Text before the first message."""
    system: str = "{content}\n\n"
    """A message of the system (or developer); `{content}` stands for its text."""
    user: str = "User: {content}\n"
    """A message of the user."""
    assistant: str = "Assistant: {content}\n"
    """An earlier answer."""
    answer: str = "Assistant:"
    """Text after the last message, where the tier goes on."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields roles whose text does not stand in their template once."""
        yield from super().cross_problems(raw, base_dir)
        for role in ROLES:
            text = raw.get(role)
            if isinstance(text, str) and text.count(CONTENT) != 1:
                yield Problem((role,), f"must hold {CONTENT} once", text)


class OpenAiDoorSettings(ServiceSettings):
    """The `[openai_door]` section."""

    listen: ListenAddress = "127.0.0.1:7440"
    """HTTP address; port 0 takes any free one. By TLS where `[mesh.tls]` is set."""
    metrics_listen: OptionalListenAddress = "127.0.0.1:9440"
    """Prometheus address; empty means none. Where `listen` is loopback it has `/metrics` too."""
    insecure_open_to_network: bool = False
    """True serves whoever reaches `listen`, and calls routers on other machines, without TLS."""
    routers: tuple[Address, ...] = Field(default=("127.0.0.1:7410",), min_length=1, max_length=100)
    """gRPC addresses of the routers, called in turn; a name may stand for several of them."""
    chat_template: Literal["plain", "bare", "chatml", "llama3", "own"] = "plain"
    """How a conversation becomes a prompt: `User: ...`, the texts alone, the marks of two families
    of models, or `own_template`. It should be that of your tiers."""
    own_template: ChatTemplateSettings = Field(default_factory=ChatTemplateSettings)
    """Used with `chat_template = "own"`; see `[openai_door.own_template]`."""
    max_body_bytes: int = Field(default=0, ge=0, le=256 * 1024 * 1024)
    """Largest request body, bytes; 0 has room for the longest prompt (`mesh.max_prompt_bytes`) as
    JSON, where a byte may take six, and 65,536 more."""
    max_header_bytes: int = Field(default=32 * 1024, ge=1024, le=1024 * 1024)
    """Largest request line and headers, bytes."""
    max_connections: int = Field(default=8_192, ge=1, le=50_000)
    """Most connections at a time, with one request each; more are refused with 503."""
    head_timeout_s: float = Field(default=10.0, gt=0.0, le=300.0)
    """Longest time a request's headers may take to arrive, seconds."""
    body_timeout_s: float = Field(default=30.0, gt=0.0, le=300.0)
    """Longest time a request's body may take to arrive, seconds."""
    keep_alive_s: float = Field(default=75.0, gt=0.0, le=3_600.0)
    """How long a connection may be idle between requests, seconds."""
    write_stall_s: float = Field(default=30.0, gt=0.0, le=3_600.0)
    """How long a client may not read its answer before its connection is cut, seconds."""
    router_timeout_s: float = Field(default=300.0, gt=0.0, le=86_400.0)
    """When a call to a router is given up, seconds. It is no deadline: set it above the longest."""
    router_check_interval_s: float = Field(default=1.0, ge=0.1, le=60.0)
    """Time between two questions for a router's health, seconds."""
    trace_folder: OptionalRelativePath = ""
    """Folder that gets spans as JSON lines, for `tiercel trace`; empty means none."""
    sample_ratio: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of requests traced where the caller brings no trace; `OTEL_TRACES_SAMPLER` wins."""

    @classmethod
    def cross_problems(cls, raw: Mapping[str, Any], base_dir: Path) -> Iterator[Problem]:
        """Yields mistakes of the template of one's own."""
        yield from super().cross_problems(raw, base_dir)
        own = raw.get("own_template")
        if isinstance(own, dict):
            for found in ChatTemplateSettings.cross_problems(own, base_dir):
                yield Problem(("own_template", *found.path), found.text, found.got)


class Settings(SettingsModel):
    """What the process reads of the mesh's file."""

    mesh: MeshSettings
    openai_door: OpenAiDoorSettings = Field(default_factory=OpenAiDoorSettings)
    log: LogSettings = Field(default_factory=LogSettings)

    @property
    def max_body_bytes(self) -> int:
        """Largest request body, bytes."""
        return self.openai_door.max_body_bytes or body_bytes(self.mesh.max_prompt_bytes)
