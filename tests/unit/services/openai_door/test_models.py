"""Names of models."""

from __future__ import annotations

import pytest

from services.common.errors import NotFoundError
from services.openai_door.models import Model, ModelNames


def test_a_model_is_the_mesh_a_task_or_a_tier() -> None:
    """Everything else is unknown, and the error lists what there is."""
    names = ModelNames(tasks=["chat"], tiers=["small", "large"])
    assert names.names == ("tiercel", "tiercel/chat", "small", "large")
    assert names.find("tiercel") == Model()
    assert names.find("tiercel/chat") == Model(task="chat")
    assert names.find("small") == Model(tier="small")
    for unknown in ("", "tiercel/", "tiercel/small", "chat", "gpt-4"):
        with pytest.raises(NotFoundError, match="tiercel/chat, small, large"):
            names.find(unknown)


def test_a_tier_of_the_meshs_name_does_not_hide_the_mesh() -> None:
    """The router still chooses."""
    assert ModelNames(tasks=[], tiers=["tiercel"]).find("tiercel") == Model()
