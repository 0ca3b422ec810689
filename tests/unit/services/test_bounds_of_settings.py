"""Every number, text and list of the settings has bounds."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from services.common.settings import SettingsModel
from services.load_monitor.settings import Settings as MonitorSettings
from services.openai_door.settings import Settings as DoorSettings
from services.router_inference.settings import Settings as RouterSettings
from services.trainer.settings import Settings as TrainerSettings


def numbers(model: type[SettingsModel], path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Yields every number below a model with the limits on it."""
    for name, info in model.model_fields.items():
        here = f"{path}.{name}".lstrip(".")
        kinds = [info.annotation, *typing.get_args(info.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, SettingsModel):
                yield from numbers(kind, here)
        if info.annotation in (int, float):
            yield here, info.metadata


@pytest.mark.parametrize("model", [MonitorSettings, RouterSettings, TrainerSettings, DoorSettings])
def test_every_number_has_a_lowest_and_a_highest_value(model: type[SettingsModel]) -> None:
    """No number is left to the part that would choke on it."""
    found = dict(numbers(model))
    assert len(found) > 15
    for path, limits in found.items():
        has = {
            name for limit in limits for name in ("ge", "gt", "le", "lt") if hasattr(limit, name)
        }
        assert has & {"ge", "gt"}, path
        assert has & {"le", "lt"}, path
