"""Settings read again: what is taken, what is named, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import pytest

from services.common.log import get_logger
from services.common.reload import SettingsSource
from services.common.settings import SettingsError, SettingsModel


class Inner(SettingsModel):
    """A section."""

    level: int = 1
    names: tuple[str, ...] = ()


class Root(SettingsModel):
    """Settings of a service."""

    own: Inner = Inner()
    port: int = 1


async def reloaded(source: SettingsSource, taken: Collection[str]) -> tuple[bool, list[Any]]:
    """Reloads with a service that takes some keys; returns what it was told changed."""
    told: list[Any] = []

    async def take(settings: Any, changed: frozenset[str]) -> Collection[str]:
        told.append((settings, changed))
        return changed & set(taken)

    return await source.reload(take, get_logger("test")), told


async def test_what_changed_is_taken_or_named(caplog: pytest.LogCaptureFixture) -> None:
    """A line for what changed, one for each key that takes a restart, until it is there."""
    files = [Root(own=Inner(level=2, names=("a",)), port=2)] * 2
    source = SettingsSource(Root(), lambda: files.pop())
    with caplog.at_level(logging.INFO):
        assert await reloaded(source, ["own.level", "own.names"]) == (
            True,
            [(Root(own=Inner(level=2, names=("a",)), port=2), {"own.level", "own.names", "port"})],
        )
        found = [(r.message, r.tiercel_fields) for r in caplog.records]  # type: ignore[attr-defined]
        assert found == [
            ("settings_reloaded", {"changed": "own.level, own.names"}),
            ("setting_needs_restart", {"setting": "port"}),
        ]
        _, told = await reloaded(source, [])
    assert told[0][1] == {"port"}


async def test_a_broken_file_changes_nothing_and_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever edits a file wrongly is told so; the service goes on as it was."""

    def read() -> Root:
        raise SettingsError(["f.toml: port: must be a number", "f.toml: own: is missing"])

    done, told = await reloaded(SettingsSource(Root(), read), ["port"])
    assert (done, told) == (False, [])
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    problems = record.tiercel_fields["problems"]  # type: ignore[attr-defined]
    assert problems == "f.toml: port: must be a number; f.toml: own: is missing"
