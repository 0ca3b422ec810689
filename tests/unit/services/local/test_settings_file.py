"""The settings file of an embedded mesh."""

from __future__ import annotations

import pathlib
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from services.common.mesh_settings import EndpointSettings, TaskSettings
from services.local.settings_file import settings_text

NAMES = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@given(NAMES, NAMES, st.floats(0.001, 100))
def test_the_settings_file_is_toml_whatever_the_names(
    folder: str, model: str, deadline_s: float
) -> None:
    """Names and paths are quoted, and the services' own settings accept what is written."""
    text = settings_text(
        name="m",
        tiers=("small",),
        profile=pathlib.Path(folder) / "a b.toml",
        quality=pathlib.Path('c"d.toml'),
        addresses={"redis": "127.0.0.1:6379"},
        tasks=[TaskSettings(name="sort", default_deadline_s=deadline_s)],
        endpoints=[
            EndpointSettings(
                name="e", address="127.0.0.1:1", tiers=("small",), models={"small": model}
            )
        ],
        sections={"router_inference": {"policy": "price", "safety_net": True}},
    )
    parsed = tomllib.loads(text)
    assert parsed["mesh"]["profile"] == str(pathlib.Path(folder) / "a b.toml")
    assert parsed["mesh"]["endpoints"][0]["models"] == {"small": model}
    assert parsed["mesh"]["tasks"][0]["default_deadline_s"] == deadline_s
    assert parsed["mesh"]["redis_url"] == "redis://127.0.0.1:6379/0"
    assert parsed["router_inference"]["safety_net"] is True
