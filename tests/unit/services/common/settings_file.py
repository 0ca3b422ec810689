"""A settings file as tests of settings write it, and the model that reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import Field

from services.common.mesh_settings import MeshSettings
from services.common.server import ServerSettings
from services.common.settings import RelativePath, SettingsError, SettingsModel, load_settings

PROFILE = """
name = "p"
source = "assumed"
[tiers.small]
step_s = 0.001
per_sequence_s = 0.0
per_prompt_token_s = 0.0
[tiers.large]
step_s = 0.01
per_sequence_s = 0.0
per_prompt_token_s = 0.0
"""
QUALITY = """
name = "q"
source = "assumed"
[quality.reverse]
small = 0.5
large = 1.0
"""
MESH = """
[mesh]
tiers = ["small", "large"]
profile = "p.toml"
quality = "q.toml"
redis_url = "redis://127.0.0.1:6379/0"
[[mesh.tasks]]
name = "reverse"
default_deadline_s = 0.5
[[mesh.endpoints]]
name = "triton-0"
address = "127.0.0.1:8001"
tiers = ["small", "large"]
models = { large = "opt" }
[trainer]
steps = 3
"""


class Section(ServerSettings):
    """A service's section."""

    listen: str = "127.0.0.1:0"
    operate_listen: str = "127.0.0.1:0"
    metrics_listen: str = ""
    period_s: float = Field(default=0.1, gt=0)
    names: tuple[str, ...] = ()
    path: RelativePath = Path("here")


class Root(SettingsModel):
    """A service's settings."""

    mesh: MeshSettings
    load_monitor: Section = Section()


Write = Callable[[str], Path]


def problems(path: Path | None, **kwargs: object) -> list[str]:
    """Returns the problem lines, file name shortened."""
    with pytest.raises(SettingsError) as caught:
        load_settings(Root, path=path, **({"environ": {}} | kwargs))  # type: ignore[arg-type]
    return [line.replace(str(path), "FILE") for line in caught.value.problems]
