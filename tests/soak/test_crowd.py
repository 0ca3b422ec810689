"""What clients that come and go count."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.faults.doors import DoorError, Missed
from tests.soak import crowd
from tests.soak.crowd import Crowd, Window


class FakeDoor:
    """A door at which every request ends alike."""

    def __init__(self, end: Callable[[], None] | None) -> None:
        """Takes what a request does; None: it never ends."""
        self._end = end

    async def ask(self, prompt: str, *, task: str, deadline_s: float, stream: bool) -> None:
        """Ends."""
        if self._end is None:
            await asyncio.Event().wait()
        else:
            self._end()

    async def close(self) -> None:
        """Does nothing."""


async def asked(end: Callable[[], None] | None, patch: pytest.MonkeyPatch) -> tuple[Crowd, Window]:
    """Returns a crowd whose requests end so, and what it counts of some forty of them."""
    found = Crowd(["127.0.0.1:1"], life_s=60.0)

    def client(door: str) -> FakeDoor:
        made = FakeDoor(end)
        found._door_of[made] = door
        return made

    patch.setattr(found, "_client", client)
    patch.setattr(crowd, "PATIENCE_S", 0.05)
    window = await found.ask(400.0, 0.1)
    await found.close()
    assert found.take().sent == 0
    return found, window


def broken() -> None:
    """An answer that nobody can read."""
    raise KeyError("type")


def late() -> None:
    """A request that misses its deadline."""
    raise DoorError("DEADLINE_EXCEEDED", kind=Missed.LATE)


@pytest.mark.parametrize(
    ("end", "kind", "said"),
    [
        (lambda: None, "on_time", ""),
        (late, "late", ""),
        (broken, "failed", "KeyError('type')"),
        (None, "failed", "no end within 0.05 s"),
    ],
)
async def test_every_request_is_counted_whatever_becomes_of_it(
    end: Callable[[], None] | None, kind: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that ends late or never, and one whose end is a bug."""
    found, window = await asked(end, monkeypatch)
    assert window.sent == sum(found.asked.values()) > 0
    assert getattr(window, kind) + window.left == window.sent
    assert all(said and error.endswith(said) for error in found.errors)
    assert sum(found.errors.values()) == window.failed
