"""Settings read again while a service runs: what can change does, what cannot is named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from services.common.log import Logger
from services.common.settings import SettingsError, SettingsModel

Take = Callable[[Any, frozenset[str]], Awaitable[Collection[str]]]
"""Gets the new settings and the keys that differ; returns the keys that it put into force.

Raises SettingsError if something is wrong with them; then nothing has changed.
"""


async def take_nothing(settings: SettingsModel, changed: frozenset[str]) -> Collection[str]:
    """Is the `Take` of a service that can change nothing while it runs."""
    return ()


class SettingsSource:
    """What a process runs by, and how to read it again."""

    def __init__(self, settings: SettingsModel, read: Callable[[], SettingsModel]) -> None:
        """Takes the settings in force; `read` reads file, environment and command line again."""
        self._running = _leaves(settings)
        self._read = read

    async def reload(self, take: Take, log: Logger) -> bool:
        """Reads the settings again and has them taken; returns False if they are wrong.

        Then one line says what is wrong, and the old ones stay. Else a line says what changed, and
        one for each key that takes a restart says so.
        """
        try:
            settings = await asyncio.to_thread(self._read)
            wanted = _leaves(settings)
            changed = {key for key, value in wanted.items() if value != self._running[key]}
            taken = set(await take(settings, frozenset(changed)))
        except SettingsError as error:
            log.error("settings_not_reloaded", problems="; ".join(error.problems))
            return False
        self._running.update({key: wanted[key] for key in taken})
        log.info("settings_reloaded", changed=", ".join(sorted(taken)) or "nothing")
        for key in sorted(changed - taken):
            log.warning("setting_needs_restart", setting=key)
        return True


def _leaves(settings: SettingsModel, prefix: str = "") -> dict[str, object]:
    """Returns the values by key; lists and tables of free keys are one value each."""
    found: dict[str, object] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, SettingsModel):
            found |= _leaves(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
